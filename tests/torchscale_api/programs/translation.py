"""Encoder and decoder that also inherit from fairseq's classes, with fairseq's positions and beam search."""

from argparse import Namespace

import torch
from fairseq.data import Dictionary
from fairseq.models import FairseqEncoder, FairseqEncoderDecoderModel, FairseqIncrementalDecoder
from fairseq.modules import PositionalEmbedding
from fairseq.sequence_generator import SequenceGenerator
from torch import nn
from torchscale.architecture.config import DecoderConfig, EncoderConfig, RetNetConfig
from torchscale.architecture.decoder import Decoder
from torchscale.architecture.encoder import Encoder
from torchscale.architecture.retnet import RetNetDecoder


class Reorders:
    def reorder_incremental_state_scripting(self, incremental_state, new_order):
        for module in incremental_state:
            for key in incremental_state[module]:
                incremental_state[module][key] = incremental_state[module][key].index_select(0, new_order)


class MTEncoder(Encoder, FairseqEncoder):
    def forward(self, src_tokens, **kwargs):
        kwargs.pop("src_lengths", None)
        mask = src_tokens.eq(self.dictionary.pad())
        return super().forward(src_tokens=src_tokens, encoder_padding_mask=mask, **kwargs)

    def reorder_encoder_out(self, encoder_out, new_order):
        names = ("encoder_out", "encoder_embedding", "encoder_padding_mask")
        found = {name: encoder_out[name].index_select(0, new_order) for name in names}
        return {**found, "encoder_states": [s.index_select(0, new_order) for s in encoder_out["encoder_states"]]}

    def max_positions(self):
        return self.embed_positions.max_positions


class MTDecoder(Reorders, Decoder, FairseqIncrementalDecoder):
    def forward(self, src_tokens, **kwargs):
        return super().forward(src_tokens, src_tokens.eq(self.dictionary.pad()), **kwargs)

    def max_positions(self):
        return self.embed_positions.max_positions


class LMDecoder(Reorders, RetNetDecoder, FairseqIncrementalDecoder):
    def forward(self, src_tokens, **kwargs):
        return super().forward(src_tokens, **kwargs)

    def max_positions(self):
        return self.args.max_target_positions


class TranslationModel(FairseqEncoderDecoderModel):
    def forward(self, src_tokens, src_lengths, prev_output_tokens, **kwargs):
        return self.decoder(prev_output_tokens, encoder_out=self.encoder(src_tokens), **kwargs)


def build(args, words, learned):
    def parts(side):
        embedding = nn.Embedding(len(words), 16, words.pad())
        return embedding, PositionalEmbedding(40, 16, words.pad(), learned=learned)

    config = EncoderConfig()
    config.override(args)
    encoder = MTEncoder(config, *parts("encoder"), is_encoder_decoder=True, dictionary=words)
    embedding, positions = parts("decoder")
    projection = nn.Linear(16, len(words), bias=False)
    projection.weight = embedding.weight
    config = DecoderConfig()
    config.override(args)
    decoder = MTDecoder(config, embedding, positions, projection, is_encoder_decoder=True, dictionary=words)
    return TranslationModel(encoder, decoder)


torch.manual_seed(0)
words = Dictionary()
for word in range(20):
    words.add_symbol(str(word))
common = {"embed_dim": 16, "ffn_embed_dim": 32, "attention_heads": 2, "layers": 2, "normalize_before": True}
sizes = {f"{side}_{name}": value for side in ("encoder", "decoder") for name, value in common.items()}
args = Namespace(**sizes, subln=False, deepnorm=False, activation_fn="relu", dropout=0.1, no_scale_embedding=False,
                 rel_pos_buckets=8, max_rel_pos=16, share_all_embeddings=False, ddp_rank=0)  # fmt: skip
source = torch.randint(4, 24, (3, 7))
source[1, 5:] = words.pad()
for learned in (False, True):
    model = build(args, words, learned)
    target = torch.randint(4, 24, (3, 5))
    logits, extra = model(source, None, target)
    assert logits.shape == (3, 5, len(words)) and len(extra["inner_states"]) == 3
    logits.sum().backward()
    model.eval()
    sample = {"net_input": {"src_tokens": source, "src_lengths": source.ne(words.pad()).sum(1)}}
    generator = SequenceGenerator([model], words, beam_size=3, max_len_b=6)
    found = generator.generate([model], sample)
    with torch.no_grad():
        for row, hypotheses in enumerate(found):
            tokens = hypotheses[0]["tokens"]
            given = torch.cat((torch.tensor([words.eos()]), tokens[:-1]))[None]
            whole = model(source[row : row + 1], None, given)[0].log_softmax(-1)[0]
            scores = whole[torch.arange(len(tokens)), tokens]
            assert torch.allclose(scores, hypotheses[0]["positional_scores"], atol=1e-3)
        begun: dict[int, dict] = {}
        prompt = model.decoder(target[:, :3], encoder_out=model.encoder(source), incremental_state=begun)[0]
        assert torch.allclose(prompt, model(source, None, target[:, :3])[0], atol=1e-4)

# Only the decoder's own layers count in its DeepNorm; the encoder's counts both sides' layers.
args.deepnorm = True
config = DecoderConfig()
config.override(args)
assert Decoder(config, is_encoder_decoder=True).layers[0].alpha == (3 * 2) ** 0.25
config = EncoderConfig()
config.override(args)
try:
    Encoder(config, is_encoder_decoder=True)
except AttributeError as error:
    assert "config.decoder_layers" in str(error)
config.decoder_layers = 2
assert abs(Encoder(config, is_encoder_decoder=True).layers[0].alpha - 0.81 * (2**4 * 2) ** (1 / 16)) < 1e-9

config = RetNetConfig(decoder_embed_dim=16, decoder_value_embed_dim=32, decoder_ffn_embed_dim=32, decoder_layers=2,
                      decoder_retention_heads=2, recurrent_chunk_size=4)  # fmt: skip
decoder = LMDecoder(config, nn.Embedding(24, 16, 1), nn.Linear(16, 24, bias=False), dictionary=words).eval()
tokens = torch.randint(4, 24, (3, 4))
state: dict[int, dict] = {}
steps = []
for end in range(1, 5):
    decoder.reorder_incremental_state_scripting(state, torch.tensor([0, 1, 2]))
    steps.append(decoder(tokens[:, :end], incremental_state=state)[0])
assert torch.allclose(torch.cat(steps, 1), decoder(tokens)[0], atol=1e-4)
print("translated")
