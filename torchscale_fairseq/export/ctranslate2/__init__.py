"""Translation models for CTranslate2."""
