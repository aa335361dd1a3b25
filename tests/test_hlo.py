"""What is read off compiled programs: collectives, bytes and operations, with loops counted as often as they run.

compiled/tpu.txt and gpu.txt are what the compilers of libtpu 0.0.42.1 (v5e:2x4) and of jaxlib 0.10.2's CUDA plugin
(8 H100) printed for a scan over five 256×256 kernels that are spread over all eight devices, with a batch of 64 rows
in four parts, and its gradient by a vector of 256.
"""

import pathlib

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType, PartitionSpec

from surm.training import collectives, hlo, operations, traffic
from surm.training.collectives import Collective, Moved

COMPILED = pathlib.Path(__file__).parent / "compiled"
MESH = "replica_groups=mesh['axis_0'=4,'axis_1'=1,'axis_2'=1,'axis_3'=2] "


def program(platform: str) -> hlo.Program:
    return hlo.parse((COMPILED / f"{platform}.txt").read_text())


def of_line(*lines: str) -> hlo.Program:
    """A program whose entry holds the given lines."""
    return hlo.parse("HloModule m\n\nENTRY %main () -> f32[] {\n" + "".join(f"  {line}\n" for line in lines) + "}\n")


@pytest.mark.parametrize(("platform", "width"), [("tpu", 2), ("gpu", 4)])
def test_collectives_of_a_loop_count_as_often_as_it_runs(platform, width):
    """A TPU brings kernels of float32 together in bfloat16, in which it multiplies them."""
    found = program(platform)
    assert sorted(times for _, times in found.running()) == [1, 5, 5] and not found.guessed
    gathered, reduced = 5 * 256 * 256 * width * 7 / 8, 2 * 257 * 4 * 3 / 4  # the vector's gradient, and the loss
    expected = {"all-reduce": Moved(1, reduced), "all-gather": Moved(5, gathered)}
    assert collectives.moved(found, 8) == expected
    assert list(collectives.moved(found, 8)) == ["all-reduce", "all-gather"]


@pytest.mark.parametrize(
    ("line", "kind", "size"),
    [
        (
            "%all-gather.373 = bf16[192,192]{1,0:T(8,128)(2,1)} all-gather(%param_0.5076), channel_id=10, "
            "replica_groups=mesh['axis_0'=8,'axis_1'=1] {'axis_0'}, dimensions={0}",
            "all-gather",
            192 * 192 * 2 * 7 / 8,
        ),
        (
            "%all-gather-start = (f32[8,16,192]{2,1,0}, f32[32,16,192]{2,1,0}) all-gather-start(%fusion.2533), "
            "channel_id=6, " + MESH + "{'axis_0'}, dimensions={0}",
            "all-gather",
            32 * 16 * 192 * 4 * 3 / 4,
        ),
        (
            "%all-gather-start.12 = ((f32[24,192]{1,0}, f32[24,192]{1,0}, /*index=5*/f32[24]{0}), (f32[192,192]{1,0}, "
            "f32[192,192]{1,0}, f32[192]{0})) all-gather-start(%a, %b, %c), channel_id=7, "
            "replica_groups=[1,8]<=[8], dimensions={0}",
            "all-gather",
            (2 * 192 * 192 + 192) * 4 * 7 / 8,
        ),
        (
            "%reduce-scatter-start = ((f32[32,16,192]{2,1,0}), f32[8,16,192]{2,1,0}) reduce-scatter-start(%b.37.0), "
            "channel_id=85, " + MESH + "{'axis_0'}, dimensions={0}, to_apply=%add",
            "reduce-scatter",
            8 * 16 * 192 * 4 * 3,
        ),
        (
            "%all-reduce-start = f32[8,16,192]{2,1,0} all-reduce-start(%rs), channel_id=8, " + MESH + "{'axis_3'}, "
            "to_apply=%add",
            "all-reduce",
            2 * 8 * 16 * 192 * 4 / 2,
        ),
        (
            "%all-reduce.1 = (f32[192,192]{1,0:T(8,128)S(1)}, f32[10]{0}) all-reduce(%a, %b), channel_id=9, "
            + MESH + "{'axis_0','axis_3'}, to_apply=%add",
            "all-reduce",
            2 * (192 * 192 + 10) * 4 * 7 / 8,
        ),
        (
            "%all-reduce.2 = f32[128,8,128]{2,1,0:T(8,128)} all-reduce(%a), channel_id=3, "
            "replica_groups={{0,2,4,6},{1,3,5,7}}, use_global_device_ids=true, to_apply=%add",
            "all-reduce",
            2 * 128 * 8 * 128 * 4 * 3 / 4,
        ),
        (
            "%collective-permute-start.2 = (bf16[1,128,512]{2,1,0:T(8,128)(2,1)S(1)}, bf16[1,128,512]"
            "{2,1,0:T(8,128)(2,1)S(1)}, u32[]{:S(2)}, u32[]{:S(2)}) collective-permute-start(%c), channel_id=1, "
            "source_target_pairs={{0,1},{1,2},{2,3}}",
            "collective-permute",
            128 * 512 * 2,
        ),
        (
            "%all-to-all.1 = bf16[16,16,384]{2,0,1:T(8,128)(2,1)S(1)} all-to-all(%x), channel_id=2, "
            "replica_groups=mesh['axis_0'=1,'axis_1'=8] {'axis_1'}, dimensions={0}",
            "all-to-all",
            16 * 16 * 384 * 2 * 7 / 8,
        ),
        (
            "%all-reduce.3 = f32[6]{0} all-reduce(%x), channel_id=4, "
            "replica_groups=mesh['axis_0'=8] {'axis_0':(2)4}, to_apply=%add",
            "all-reduce",
            2 * 6 * 4 * 3 / 4,
        ),
        ("%all-reduce.4 = f32[6]{0} all-reduce(%x), replica_groups={}, to_apply=%add", "all-reduce", 2 * 6 * 4 * 7 / 8),
    ],
)  # fmt: skip
def test_what_a_chip_sends_is_read_off_as_the_compilers_print_it(line, kind, size):
    assert collectives.moved(of_line(line), 8) == {kind: Moved(1, size)}


def test_one_channel_in_several_fusions_is_one_collective():
    """As a TPU's compiler writes a gather that goes on beside products: once to start it, once in each of them."""
    gather = "  ROOT %all-gather.{0} = bf16[192,192]{{1,0}} all-gather(%p{0}), channel_id=8, replica_groups={{}}\n"
    parts = "".join(
        f"%fused.{n} (p{n}: bf16[24,192]) -> bf16[192,192] {{\n  %p{n} = bf16[24,192]{{1,0}} parameter(0)\n"
        f"{gather.format(n)}}}\n\n"
        for n in range(3)
    )
    calls = "".join(f"  %f.{n} = bf16[192,192]{{1,0}} fusion(%x), kind=kCustom, calls=%fused.{n}\n" for n in range(3))
    found = hlo.parse(f"HloModule m\n\n{parts}ENTRY %main (x: bf16[24,192]) -> bf16[192,192] {{\n{calls}}}\n")
    (one,) = collectives.every(found, 8)
    assert one == Collective("all-gather", "bf16[192,192]{1,0}", 1, 8, "")


def test_a_loop_whose_end_cannot_be_read_counts_once_and_is_named():
    text = (COMPILED / "gpu.txt").read_text()
    assert '"known_trip_count":{"n":"5"}' in text
    unknown = text.replace('"known_trip_count":{"n":"5"}', "")
    assert [times for _, times in hlo.parse(unknown).running()] == [1, 5, 5]  # by its condition
    found = hlo.parse(unknown.replace("direction=LT", "direction=GE"))
    assert [times for _, times in found.running()] == [1, 1, 1] and len(found.guessed) == 2


def test_a_loop_in_a_loop_runs_as_often_as_both_together():
    def inner(x, _):
        return jax.lax.scan(lambda x, _: (jnp.sin(x @ x), None), x, length=3)[0], None

    x = jnp.ones((8, 8))
    compiled = jax.jit(lambda x: jax.lax.scan(inner, x, length=4)[0]).lower(x).compile()
    assert max(times for _, times in hlo.parse(compiled.as_text()).running()) == 12


@pytest.mark.parametrize(
    ("text", "sizes"),
    [
        ("f32[]", [4]),
        ("pred[7]{0}", [7]),
        ("s4[3]{0}", [2]),
        ("f8e4m3fn[3,2]{1,0}", [6]),
        ("(c64[2]{0}, token[], bf16[0,4]{1,0})", [16, 0, 0]),
        ("u16[2,2]{1,0:T(8,128)(2,1)S(1)}", [8]),
    ],
)
def test_the_bytes_of_a_type(text, sizes):
    assert [array.size for array in hlo.arrays(text)] == sizes


def test_bytes_are_those_of_xla_where_nothing_loops():
    def loss(w, x):
        return jnp.sum(jnp.tanh(x @ w[0]) @ w[1])

    shapes = (jax.ShapeDtypeStruct((2, 512, 512), jnp.float32), jax.ShapeDtypeStruct((64, 512), jnp.float32))
    compiled = jax.jit(jax.grad(loss)).lower(*shapes).compile()
    found = traffic.accessed(hlo.parse(compiled.as_text()), on_chip=False)
    assert found == pytest.approx(compiled.cost_analysis()["bytes accessed"], rel=0.15)


def test_bytes_of_a_loop_count_as_often_as_it_runs_and_of_a_stack_only_what_a_turn_reads():
    def looped(w, x):
        return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, w)[0]

    found = {}
    for depth in (4, 8):
        shapes = jax.ShapeDtypeStruct((depth, 256, 256), jnp.float32), jax.ShapeDtypeStruct((8, 256), jnp.float32)
        text = jax.jit(looped).lower(*shapes).compile().as_text()
        found[depth] = traffic.accessed(hlo.parse(text), on_chip=False)
    a_turn = (found[8] - found[4]) / 4
    assert 256 * 256 * 4 <= a_turn <= 3.5 * 256 * 256 * 4  # a kernel is read, and perhaps copied before
    assert found[4] < 6 * a_turn


def test_memory_on_a_tpus_chip_is_not_main_memory():
    lines = (
        "%a = f32[1000]{0:T(1024)} parameter(0)",
        "%copy-start = (f32[1000]{0:T(1024)S(1)}, f32[1000]{0:T(1024)}, u32[]{:S(2)}) copy-start(%a)",
        "%copy-done = f32[1000]{0:T(1024)S(1)} copy-done(%copy-start)",
        "ROOT %n = f32[1000]{0:T(1024)S(1)} negate(%copy-done)",
    )
    assert traffic.accessed(of_line(*lines), on_chip=True) == 4000
    assert traffic.accessed(of_line(*lines), on_chip=False) == 16000


def test_the_scratch_memory_of_cublas_is_neither_read_nor_written():
    lines = (
        "%a = f32[10,10]{1,0} parameter(0)",
        'ROOT %g = (f32[10,10]{1,0}, s8[33554432]{0}) custom-call(%a, %a), custom_call_target="__cublas$lt$matmul"',
    )
    assert traffic.accessed(of_line(*lines), on_chip=False) == 1200


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x @ x,
        lambda x: jnp.einsum("ab,cb->ac", jnp.tanh(x @ x), x),
        lambda x: jax.lax.conv_general_dilated(x[None, None], x[None, None, :3, :3], (1, 1), "VALID"),
        jax.grad(lambda x: jnp.sum((x @ x) ** 2)),
    ],
)
def test_operations_are_those_of_xla(function):
    x = jax.ShapeDtypeStruct((64, 64), jnp.float32)
    products = operations.counted(jax.jit(function).trace(x).jaxpr)
    counted = jax.jit(function).lower(x).cost_analysis()["flops"]
    assert products == pytest.approx(counted, rel=0.1) and products <= counted


def test_operations_count_in_loops_branches_and_programs_inside():
    x = jnp.ones((8, 8))
    one = 2 * 8**3
    looped = lambda x: jax.lax.scan(lambda x, _: (jax.jit(lambda x: x @ x)(x), None), x, length=7)[0]  # noqa: E731
    branched = lambda x: jax.lax.cond(x[0, 0] > 0, lambda x: x @ x @ x, lambda x: x @ x, x)  # noqa: E731
    unused = lambda x: (x, x @ x)[0]  # noqa: E731
    recomputed = jax.grad(lambda x: jnp.sum(jax.checkpoint(lambda x: jnp.sin(x @ x))(x)))
    for function, number in ((looped, 7), (branched, 2), (unused, 0), (recomputed, 3)):
        assert operations.counted(jax.make_jaxpr(function)(x)) == number * one


def test_operations_inside_shard_map_count_on_every_device():
    mesh = jax.sharding.AbstractMesh((4, 2), ("data", "model"), axis_types=(AxisType.Auto,) * 2)
    specs = {"in_specs": (PartitionSpec("data"), PartitionSpec()), "out_specs": PartitionSpec("data")}
    product = jax.shard_map(jnp.matmul, mesh=mesh, axis_names={"data"}, **specs)
    found = jax.make_jaxpr(product)(jnp.ones((8, 16)), jnp.ones((16, 16)))
    assert operations.counted(found) == 2 * 8 * 16 * 16
