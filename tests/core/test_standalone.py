"""The core works without fairseq, and TorchScale's README snippets work with our import line."""

from pathlib import Path

import pytest

from tests.core.standalone import NOTHING_DRAWN, run


def test_snippets_of_torchscales_readme() -> None:
    out = run(
        """
        import torch
        from torchscale_fairseq import EncoderConfig, Encoder
        config = EncoderConfig(vocab_size=64000)
        model = Encoder(config)
        print(model)

        from torchscale_fairseq import DecoderConfig, Decoder
        config = DecoderConfig(vocab_size=64000)
        decoder = Decoder(config)
        print(decoder)

        from torchscale_fairseq import EncoderDecoderConfig, EncoderDecoder
        config = EncoderDecoderConfig(vocab_size=64000)
        encdec = EncoderDecoder(config)
        print(encdec)

        from torchscale_fairseq import RetNetConfig, RetNetDecoder
        config = RetNetConfig(vocab_size=64000)
        retnet = RetNetDecoder(config)
        print(retnet)

        config = EncoderConfig(vocab_size=64000, deepnorm=True, multiway=True)
        model = Encoder(config)
        print(model)

        tokens = torch.randint(2, 64000, (1, 5))
        print(tuple(model(tokens)["encoder_out"].shape), tuple(decoder(tokens)[0].shape))
        print(tuple(retnet(tokens)[0].shape))
        """,
        NOTHING_DRAWN,
    )
    assert "(1, 5, 64000) (1, 5, 64000)\n(1, 5, 64000)" in out


def test_importing_the_package_imports_neither_torch_nor_fairseq() -> None:
    out = run("import torchscale_fairseq; print('torch' in sys.modules, torchscale_fairseq.__version__)")
    assert out.split()[0] == "False"


def test_unknown_name() -> None:
    import torchscale_fairseq

    with pytest.raises(AttributeError, match="has no attribute 'Encodr'"):
        _ = torchscale_fairseq.Encodr
    assert "EncoderDecoder" in dir(torchscale_fairseq)


def test_names_are_public_and_typed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing but the names in ``dir()``, and none of them is Any to a type checker in another folder, which is spared
    torch's own files here."""
    import torchscale_fairseq

    names = [name for name in dir(torchscale_fairseq) if not name.startswith("__")]
    assert names == sorted(torchscale_fairseq.__all__)
    lines = [f"reveal_type(torchscale_fairseq.{name})" for name in names]
    (tmp_path / "user.py").write_text("\n".join(["import torchscale_fairseq", *lines]) + "\n")
    (tmp_path / "mypy.ini").write_text("[mypy]\nfollow_imports = silent\n[mypy-torch.*]\nfollow_imports = skip\n")
    api = pytest.importorskip("mypy.api")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MYPYPATH", str(Path(torchscale_fairseq.__file__).parents[1]))
    printed, _, _ = api.run(["--no-implicit-reexport", "--cache-dir", str(tmp_path), "user.py"])
    revealed = [line for line in printed.splitlines() if "Revealed type is" in line]
    assert len(revealed) == len(names) and "Module" not in printed, printed
    assert not [line for line in revealed if '"Any"' in line or '"object"' in line]
