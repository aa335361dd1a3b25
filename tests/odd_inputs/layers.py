"""Models and targets that are odd: layers that are none, patterns that mean something else, other types of arrays."""

import jax.numpy as jnp
from flax import nnx

import surm
from surm.models import vit
from surm.peft import arguments, surgery
from tests.odd_inputs.row import Line, Odd

VIT = vit.ViTConfig(image_size=4, patch_size=2, width=4, depth=1, heads=2, mlp_width=4, epsilon=1e-6)


class Custom(nnx.Module):
    """A layer of somebody's own, with its matrix under another name than a kernel."""

    def __init__(self, rngs: nnx.Rngs):
        self.weight = nnx.Param(jnp.ones((4, 4)))


class Kernel(nnx.Module):
    """A layer of somebody's own with a kernel."""

    def __init__(self, rngs: nnx.Rngs):
        self.kernel = nnx.Param(jnp.ones((4, 4)))


class Quantised(nnx.Linear):
    """As libraries for quantisation have it: the kernel is several arrays."""

    def __init__(self, n_in: int, n_out: int, *, rngs: nnx.Rngs):
        super().__init__(n_in, n_out, rngs=rngs)
        self.kernel = nnx.Param({"values": jnp.ones((n_in, n_out), jnp.int8), "scale": jnp.ones(n_out)})


class Model(nnx.Module):
    """Any layer, and a head."""

    def __init__(self, layer):
        rngs = nnx.Rngs(0)
        self.body = layer(rngs)
        self.head = nnx.Linear(4, 2, rngs=rngs)


def linear(dtype=jnp.float32):
    return lambda rngs: nnx.Linear(4, 4, param_dtype=dtype, rngs=rngs)


def holding(layer: nnx.Linear, kernel) -> nnx.Linear:
    layer.kernel = nnx.Param(kernel)
    return layer


def adapted(layer, targets=".*", **fields):
    """The paths of the adapted layers."""
    spec = surm.PeftSpec(**{"targets": targets, "family": "circulant"} | fields)
    return list(surgery.layers_by_path(surm.attach(Model(layer), spec, nnx.Rngs(1))))


def of_vit(**fields):
    model = surm.attach(vit.ViT(VIT, 2, rngs=nnx.Rngs(0)), surm.PeftSpec(train="head", **fields), nnx.Rngs(1))
    return [path for path in surgery.layers_by_path(model) if not path.startswith("blocks")]


def dtype_of_merged(dtype):
    model = surm.attach(Model(linear(dtype)), surm.PeftSpec(targets="body"), nnx.Rngs(1))
    model.body.delta.parameters["b"][...] += 1.0
    kernel = surm.merge(model).body.kernel
    return str(kernel.dtype), bool((kernel[...] != model.body.kernel[...]).any())


def old_file(folder):
    """An adapter as surm 0.1.0 saved it: the head trains as a whole and has an update besides."""
    spec, plain = surm.PeftSpec(targets=".*", train="head"), Model(linear())
    names = ["head.base.kernel", "head.delta.parameters.a", "body.delta.parameters.a"]
    old = surgery.reattach(plain, spec, nnx.Rngs(1), saved=names)
    old.head.delta.parameters["b"][...] += 1.0
    surm.save_adapter(folder, old)
    loaded, x = surm.load_adapter(folder, plain), jnp.ones((1, 4))
    return [*surgery.layers_by_path(loaded)], bool((loaded.head(x) == old.head(x)).all())


def older_than_attention(folder):
    """An adapter as surm 0.1.0 saved it, which saw none of attention's layers."""
    plain = Model(lambda rngs: nnx.MultiHeadAttention(2, 4, rngs=rngs))
    old = surgery.reattach(plain, surm.PeftSpec(targets=".*"), nnx.Rngs(1), saved=["head.delta.parameters.a"])
    surm.save_adapter(folder, old)
    return [*surgery.layers_by_path(surm.load_adapter(folder, plain))]


ROWS = [
    Odd("flax's attention under .*",
        lambda _: adapted(lambda rngs: nnx.MultiHeadAttention(2, 4, rngs=rngs), train="head"),
        [f"body.{name}" for name in ("key", "out", "query", "value")]),
    Odd("layers in a list that nnx.data marks",
        lambda _: adapted(lambda rngs: nnx.Dict(all=nnx.data([linear()(rngs), linear()(rngs)])), r"body\..*"),
        ["body.all.0", "body.all.1"]),
    Odd("layers in a tuple", lambda _: adapted(lambda rngs: nnx.Dict(all=nnx.data((linear()(rngs),))), r"body\..*"),
        ["body.all.0"]),
    Odd("a convolution under .*", lambda _: adapted(lambda rngs: nnx.Conv(4, 4, (1,), rngs=rngs)),
        Line("pattern '.*' matches body, an nnx.Conv that holds bias float32[4], kernel float32[1, 4, 4]; expected a "
             "layer of nnx.Linear or nnx.LinearGeneral or nnx.Einsum; exclude='body' leaves it as it is, train")),
    Odd("a convolution under .* that is excluded",
        lambda _: adapted(lambda rngs: nnx.Conv(4, 4, (1,), rngs=rngs), exclude="body"), ["head"]),
    Odd("a convolution alone", lambda _: adapted(lambda rngs: nnx.Conv(4, 4, (1,), rngs=rngs), "body"),
        Line("pattern 'body' matches no linear layer, but body, an nnx.Conv")),
    Odd("an embedding alone", lambda _: adapted(lambda rngs: nnx.Embed(9, 4, rngs=rngs), "body"),
        Line("but body, an nnx.Embed that holds embedding float32[9, 4]")),
    Odd("an embedding under .*", lambda _: adapted(lambda rngs: nnx.Embed(9, 4, rngs=rngs)), ["head"]),
    Odd("a layer of one's own with a kernel", lambda _: adapted(Kernel),
        Line("'.*' matches body, a Kernel that holds")),
    Odd("a layer of one's own, nothing else but the head", lambda _: adapted(Custom),
        Line("pattern '.*' matches only head, but skips body, a Custom that holds weight float32[4, 4]")),
    Odd("a layer of one's own, the head trained", lambda _: adapted(Custom, train="head"), Line("train='head'")),
    Odd("a quantised layer", lambda _: adapted(lambda rngs: Quantised(4, 4, rngs=rngs)),
        Line("body: is a Quantised whose kernel is a dict, as of a quantised layer; expected an array; name")),
    Odd("an int8 kernel", lambda _: adapted(
        lambda rngs: holding(linear()(rngs), jnp.ones((4, 4), jnp.int8)), "body"),
        Line("body: is an nnx.Linear whose kernel is int8[4, 4]; expected floating point of 16 bits or more")),
    Odd("a float8 kernel", lambda _: adapted(
        lambda rngs: holding(linear()(rngs), jnp.ones((4, 4), jnp.float8_e4m3fn)), "body"),
        Line("body: is an nnx.Linear whose kernel is float8_e4m3fn[4, 4]")),
    Odd("a bfloat16 kernel, merged", lambda _: dtype_of_merged(jnp.bfloat16), ("bfloat16", True)),
    Odd("a float16 kernel, merged", lambda _: dtype_of_merged(jnp.float16), ("float16", True)),
    Odd("an nnx.LoRALinear", lambda _: adapted(lambda rngs: nnx.LoRALinear(4, 4, lora_rank=2, rngs=rngs)),
        Line("body: is an nnx.LoRALinear, which has an update already; expected an nnx.Linear")),
    Odd("a layer whose kernel is normalised in every call",
        lambda _: adapted(lambda rngs: nnx.SpectralNorm(linear()(rngs), rngs=rngs)),
        Line("body.layer_instance: is inside an nnx.SpectralNorm")),
    Odd("a module for its layers", lambda _: adapted(lambda rngs: nnx.MultiHeadAttention(2, 4, rngs=rngs), "body"),
        Line(r"but body, an nnx.MultiHeadAttention that holds layers; 'body\..*' matches those")),
    Odd("an excluded module for its layers", lambda _: of_vit(targets=r"blocks\..*", exclude=r"blocks\.0"),
        Line(r"'blocks\.0' matches no linear layer, but blocks.0, a Block that holds layers")),
    Odd("a variable for its layer", lambda _: adapted(linear(), "body.kernel"),
        Line("matches no linear layer, but body.kernel, a variable; expected the layer that holds it, 'body'")),
    Odd("a slip in the end of a path", lambda _: of_vit(targets=r".*\.qeury"),
        Line("matches no linear layer; nearest: blocks.0.attention.query")),
    Odd("a slip in the second of two ends", lambda _: of_vit(targets=r".*\.(qqqqqqq|valeu)"),
        Line("matches no linear layer; nearest: blocks.0.attention.value")),
    Odd("a slip in a field of a rule", lambda _: of_vit(rules=".*query => famly=kronecker"),
        Line("peft.rules='famly=kronecker': no field is called 'famly'; nearest: family")),
    Odd("a slip in a number of a rule", lambda _: of_vit(rules=".*query => scal=2"),
        Line("has no option 'scal'; it has hadamard; the nearest field: scale")),
    Odd("a field of its own among options", lambda _: of_vit(options="scale=2"),
        Line("has no option 'scale'; it has hadamard; the nearest field: scale")),
    Odd("the end of a path for the whole", lambda _: of_vit(targets="query"),
        Line("matches no linear layer as a whole, only a part of blocks.0.attention.query; '.*(query).*' matches th")),
    Odd("patterns joined by a comma", lambda _: of_vit(targets=".*query,.*value"),
        Line("patterns are joined by |, not by commas")),
    Odd("a pattern of a shell", lambda _: of_vit(targets="*query"),
        Line("pattern '*query' is not a regular expression: nothing to repeat at position 0; '.*query' is one")),
    Odd("PEFT's word for all layers", lambda _: of_vit(targets="all-linear"), Line("PEFT's 'all-linear' is '.*'")),
    Odd(".* where the head trains", lambda _: of_vit(targets=".*"), ["embed.patch"]),
    Odd(".* where the head's bias trains", lambda _: adapted(linear(), train="head.bias"), ["body", "head"]),
    Odd("the head by targets and train", lambda _: of_vit(targets="head"),
        Line("pattern 'head' matches head, which train='head' trains as a whole, so it takes no adapter")),
    Odd("the head by a rule and train", lambda _: of_vit(rules="head => scale=2"), Line("pattern 'head' matches head")),
    Odd("a rule for all where the head trains", lambda _: of_vit(rules=".* => scale=2"), ["embed.patch"]),
    Odd("no targets on a model without such names", lambda _: adapted(linear(), ()),
        Line("where no targets are given, 'update' has '(.*\\.)?(query|key|value)': set targets")),
    Odd("a part with a dot in its name",
        lambda _: adapted(lambda rngs: nnx.Dict({"a.b": linear()(rngs)})), Line("a part named 'a.b'; expected a name")),
    Odd("a class for a model", lambda _: arguments.check(Model, surm.PeftSpec(), nnx.Rngs(0)),
        Line("got the class tests.odd_inputs.layers.Model, surm.peft.spec.PeftSpec")),
    Odd("an adapter of 0.1.0 with a head named twice", old_file, (["body", "head"], True)),
    Odd("an adapter of 0.1.0 beside attention", older_than_attention, ["head"]),
]  # fmt: skip
