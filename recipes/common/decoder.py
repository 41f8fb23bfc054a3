"""The decoders that are trained from scratch: by size, or with the configuration of another model."""

from __future__ import annotations

from recipes.common.data import check_length
from recipes.common.flags import loading
from recipes.common.offline import GPT2_BPE, RecipeError, gpt2_bpe

# Width and number of layers. With the 50,257 tokens of GPT-2 and one matrix for embeddings and head, these are 2.1M to
# 1.0B parameters.
SIZES = {"2M": (40, 4), "5M": (96, 4), "30M": (384, 8), "125M": (768, 12), "350M": (1024, 24), "1B": (2048, 18)}
CONTEXT = 4096  # tokens, of a model made by size


def load_config(args):
    """Tokenizer and configuration of the model to make."""
    from transformers import AutoConfig, AutoTokenizer

    name = args.tokenizer or (GPT2_BPE if args.model in SIZES else args.model)
    with loading("tokenizer", name):
        tokenizer = gpt2_bpe() if name == GPT2_BPE else AutoTokenizer.from_pretrained(name)
    if tokenizer.eos_token_id is None:
        raise RecipeError(f"--tokenizer {name!r} has no end-of-text token to separate the documents: use another")
    if args.model in SIZES:
        config = config_of_size(args, tokenizer)
    else:
        with loading("model", args.model):
            config = AutoConfig.from_pretrained(args.model)
        if args.width or args.layers:
            raise RecipeError(f"--width and --layers go with a size ({', '.join(SIZES)}), not --model {args.model!r}")
        if len(tokenizer) > config.vocab_size:
            raise RecipeError(
                f"--tokenizer {name!r} has {len(tokenizer)} tokens, --model {args.model!r} has {config.vocab_size}:"
                " use the model's own"
            )
    check_length(args.max_length, config)
    config.use_cache = False
    return tokenizer, config


def config_of_size(args, tokenizer):
    width, layers = args.width or SIZES[args.model][0], args.layers or SIZES[args.model][1]
    heads = heads_of(width)
    if width % (2 * heads):
        raise RecipeError(f"--width {width} is not a multiple of {2 * heads}, twice its number of heads: try another")
    ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    return llama(len(tokenizer), width, layers, **ends)


def heads_of(width: int) -> int:
    return max(1, width // (64 if width >= 512 else 32))


def llama(vocabulary: int, width: int, layers: int, **more):
    """Configuration of a decoder with one matrix for embeddings and head."""
    from transformers import LlamaConfig

    return LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=max(8, width * 8 // 3 // 8 * 8),
        num_hidden_layers=layers,
        num_attention_heads=heads_of(width),
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        **more,
    )
