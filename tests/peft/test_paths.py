"""Every path of every family gives what the others give, and `auto` takes one that was measured to be quick."""

import dataclasses
import functools
import importlib
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.ad_checkpoint import print_saved_residuals

import surm
from surm import InputError, PeftSpec, matrices
from surm.models.attention import Attention
from surm.ops.matmul import dot_general
from surm.peft import surgery
from surm.peft.multiply import paths
from tests.matrices.cases import DISTINCT
from tests.peft.answer import answer
from tests.peft.randomize import randomize
from tests.peft.test_surgery import UPDATES, attach, every_update


@every_update
def test_the_paths_agree_in_values_and_gradients(one_block, images, family, options):
    targets = r"blocks\.0\.(.*\.(query|key|value|output)|mlp\.(up|down))"
    spec = {"family": family, "options": options, "targets": targets, "scale": 0.5}
    results = {}
    for path in paths.available("update", family):
        graphdef, trainable, frozen = surgery.split(randomize(attach(one_block, path=path, **spec), deviation=0.05))
        loss = lambda t, g=graphdef, f=frozen: jnp.mean(surgery.join(g, t, f)(images) ** 2)  # noqa: E731
        results[path] = jax.jit(jax.value_and_grad(loss))(trainable)
    value, gradients = results.pop("branch")
    largest = max(float(jnp.abs(gradient).max()) for gradient in gradients.values())
    for path, (other, others) in results.items():
        np.testing.assert_allclose(other, value, rtol=1e-5, err_msg=path)
        for name, gradient in gradients.items():
            np.testing.assert_allclose(others[name], gradient, rtol=1e-3, atol=1e-5 * largest, err_msg=f"{path} {name}")


@pytest.mark.parametrize(
    ("family", "path"),
    [(family, path) for family in DISTINCT for path in paths.FUSED if path in paths.available("update", family)],
)
def test_the_fused_paths_are_the_merged_model(small_vit, images, path, family):
    adapted = randomize(attach(small_vit, path=path, family=family), deviation=0.05)
    found, merged = adapted(images), surm.merge(adapted)(images)
    if family in ("toeplitz", "low_displacement_rank"):  # whose dense form is made another, quicker way
        np.testing.assert_allclose(found, merged, rtol=1e-4, atol=1e-5)
    else:
        np.testing.assert_array_equal(found, merged)


@pytest.mark.parametrize("targets", ["query", "query|value", "query|key|value"])
def test_layers_that_share_an_input_share_its_transform(targets):
    attention = Attention(24, 3, rngs=nnx.Rngs(0))
    adapted = surm.attach(attention, PeftSpec(targets=targets, train="", path="branch"), nnx.Rngs(3))
    graphdef, trainable, frozen = surgery.split(adapted)
    answer = jax.jit(lambda trainable, x: surgery.join(graphdef, trainable, frozen)(x))
    compiled = answer.lower(trainable, jnp.ones((2, 5, 24))).compile().as_text()
    of_batch = re.findall(r"= (?:f32|c64)\[(?:2,5|10),\d+\]\S* fft\(", compiled)
    assert len(of_batch) == 1 + len(targets.split("|"))


class Doubled(nnx.Linear):
    """A linear layer that does more than multiply."""

    def __call__(self, x):
        return 2 * super().__call__(x)


def test_a_layer_that_does_more_than_multiply_is_updated_beside_and_not_merged():
    x = jnp.ones((2, 12))
    adapted = surm.attach(nnx.Dict(query=Doubled(12, 12, rngs=nnx.Rngs(0))), PeftSpec(), nnx.Rngs(3))
    np.testing.assert_array_equal(adapted.query(x), adapted.query.base(x))
    with pytest.raises(InputError, match="query: the layer is a Doubled, which has a __call__ of its own"):
        surm.merge(adapted)
    with pytest.raises(InputError, match="query: magnitude=True, but the layer is a Doubled"):
        updated(Doubled, PeftSpec(magnitude=True))


PRODUCTS = pytest.mark.parametrize("product", [jax.lax.dot_general, dot_general], ids=["plain", "of surm's models"])


def updated(linear: type = nnx.Linear, spec: PeftSpec | None = None, **options) -> nnx.Module:
    base = nnx.Dict(query=linear(12, 12, rngs=nnx.Rngs(0), **options))
    return surm.attach(base, spec or PeftSpec(), nnx.Rngs(3)).query


def chosen(layer: nnx.Module, rows: int) -> str:
    return layer._path(jnp.zeros((rows, 12)))


def test_the_table_that_ships_is_found():
    measured = {(point["family"], point["dtype"]) for point in paths._measured("cpu")}
    assert measured >= {(family, "float32") for family in ("circulant", "toeplitz", "kronecker", "low_rank")}


def test_auto_takes_what_was_measured_and_the_branch_where_nothing_was(monkeypatch):
    form = {"family": "circulant", "parameters": {"a": [12], "b": [12]}}
    point = {**form, "dtype": "float32", "n_out": 12, "n_in": 12}
    slow, quick = {"branch": 1.0, "fused": 2.0, "branch_dense": 3.0}, {"branch": 3.0, "fused": 1.0, "branch_dense": 2.0}
    points = [{**point, "rows": 10, "seconds": slow}, {**point, "rows": 1000, "seconds": quick}]
    monkeypatch.setattr(paths, "_measured", {"cpu": points, "tpu": []}.get)
    assert [chosen(updated(), rows) for rows in (0, 10, 1000, 10**5)] == ["branch", "branch", "fused", "fused"]
    assert chosen(updated(spec=PeftSpec(dropout=0.1)), 1000) == "branch_dense"  # may not be fused
    assert chosen(updated(spec=PeftSpec(family="toeplitz")), 1000) == "branch"
    assert chosen(updated(dtype=jnp.bfloat16), 1000) == "branch"
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    assert chosen(updated(), 1000) == "branch_dense"


def test_the_nearest_matrix_is_so_by_form_then_by_shape_then_by_rank(monkeypatch):
    def point(n_out, n_in, parameters, best):
        seconds = {"branch": 2.0, "branch_dense": 2.0, "fused": 2.0, best: 1.0}
        sizes = {"n_out": n_out, "n_in": n_in, "rows": 10, "parameters": parameters}
        return {"family": "low_rank", "dtype": "float32", **sizes, "seconds": seconds}

    points = [
        point(64, 64, {"a": [1, 64], "b": [64, 1]}, "branch"),
        point(64, 64, {"a": [8, 64], "b": [64, 8]}, "fused"),
        point(16, 256, {"a": [1, 256], "b": [16, 1]}, "branch_dense"),
        point(64, 64, {"c": [1, 64]}, "branch_dense"),
    ]
    monkeypatch.setattr(paths, "_measured", lambda platform: points)

    def ask(n_out, n_in, rank, dtype="float32", names="ab"):
        parameters = dict(zip(names, ((rank, n_in), (n_out, rank)), strict=False))
        return paths.quickest("low_rank", n_out, n_in, 9999, parameters, dtype, "cpu", fusible=True)

    assert ask(60, 70, 1) == "branch" and ask(60, 70, 9) == "fused"
    assert ask(20, 200, 8) == "branch_dense"
    assert ask(16, 256, 1, names="c") == "branch_dense" and ask(60, 70, 1, names="c") == "branch_dense"
    assert ask(60, 70, 1, dtype="float64") == "branch" and ask(60, 70, 9, dtype="float16") == "branch"


def test_times_are_linear_in_the_rows(monkeypatch):
    def point(rows, dense, branch):
        sizes = {"n_out": 64, "n_in": 64, "rows": rows, "parameters": {"c": [64]}}
        return {
            "family": "circulant",
            "dtype": "float32",
            **sizes,
            "seconds": {"branch_dense": dense, "branch": branch},
        }

    points = [point(1000, 11.0, 12.0), point(100, 2.0, 1.0), point(200, 4.0, 2.0)]
    monkeypatch.setattr(paths, "_measured", lambda platform: points)
    # dense takes 4 + 7/800 a row above 200, the branch 2 + 10/800: equal at 733 rows
    ask = lambda rows: paths.quickest("circulant", 64, 64, rows, {"c": (64,)}, "float32", "cpu", fusible=True)  # noqa: E731
    assert [ask(rows) for rows in (1, 100, 150, 720, 740, 1000, 10**6)] == ["branch"] * 4 + ["branch_dense"] * 3


def test_of_two_matrices_as_near_one_is_taken_and_not_a_mixture(monkeypatch):
    def point(n, rows, dense, branch):
        sizes = {"n_out": n, "n_in": n, "rows": rows, "parameters": {"c": [n]}}
        seconds = {"branch_dense": dense, "branch": branch}
        return {"family": "circulant", "dtype": "float32", **sizes, "seconds": seconds}

    points = [point(1024, 1024, 2.0, 1.0), point(1024, 4096, 8.0, 4.0), point(4096, 1024, 90.0, 30.0)]
    for measured in (points, points[::-1]):
        monkeypatch.setattr(paths, "_measured", lambda platform, measured=measured: measured)
        asked = {"parameters": {"c": (2048,)}, "dtype": "float32", "platform": "cpu", "fusible": True}
        assert paths.quickest("circulant", 2048, 2048, 8192, **asked) == "branch"


@pytest.mark.parametrize("family", DISTINCT)
def test_auto_answers_beyond_what_was_measured(family):
    for n in (1, 128, 200, 2048, 10**4):
        shapes = {"a": (n,)}, {"b": (n,)}, {"a": (1, 8, n), "b": (1, n, 8)}
        for rows, parameters in ((0, shapes[0]), (10**3, shapes[1]), (10**6, shapes[2])):
            for dtype in ("float32", "bfloat16", "float64"):
                taken = paths.quickest(family, n, n, rows, parameters, dtype, "cpu", fusible=False)
                assert taken in paths.available("adapter", family)


MATRIX = ("family", "n_out", "n_in", "rows", "dtype", "parameters")


def test_the_committed_measurements_are_those_of_the_whole_grid():
    script = importlib.import_module("experiments.paths.run")
    fields = [field.name for field in dataclasses.fields(script.Point)]
    points = paths._measured("cpu")
    assert len({json.dumps([point[key] for key in MATRIX]) for point in points}) == len(points)
    as_text = lambda values: json.dumps(values, sort_keys=True)  # noqa: E731
    found = sorted(as_text({name: point[name] for name in fields}) for point in points)
    assert found == sorted(as_text(dataclasses.asdict(point)) for point in script.grid())
    for point in points:
        expected = {*paths.available("update", point["family"])} - {"fused_dft"}  # which came later
        assert {*point["seconds"]} == (expected if point["dtype"] == "float32" else expected - {*paths.FUSED})
        assert point["floor_seconds"] > 0
    assert paths._measured("abacus") == []


@pytest.mark.parametrize("family", DISTINCT)
def test_auto_is_the_quickest_wherever_it_was_measured(family):
    for point in paths._measured("cpu"):
        if point["family"] == family:
            sizes = (point["n_out"], point["n_in"], point["rows"], point["parameters"], point["dtype"])
            taken = paths.quickest(family, *sizes, "cpu", fusible=True)
            assert point["seconds"][taken] == min(point["seconds"].values())


def test_where_nothing_was_measured_one_line_says_so(caplog):
    for dtype, platform, taken in 2 * [("float32", "abacus", "fused_dense"), ("float16", "cpu", "branch")]:
        assert paths.quickest("circulant", 4, 4, 512, {"c": (4,)}, dtype, platform, fusible=True) == taken
    assert [record.getMessage() for record in caplog.records] == [
        "path='auto' is 'fused_dense' according to XLA's compilers (experiments/compiled): "
        "circulant in float32 on a abacus has not been measured (`surm calibrate` does so)",
        "path='auto' is 'branch': circulant in float16 on a cpu has not been measured (`surm calibrate` does so)",
    ]


@pytest.mark.parametrize(("family", "options"), [row for row in UPDATES if not matrices.FAMILIES[row[0]].fixed])
def test_the_paths_agree_for_adapters(small_vit, images, family, options):
    logits = {}
    for path in paths.available("adapter", family):
        spec = {"method": "adapter", "family": family, "options": options, "path": path}
        logits[path] = answer(randomize(attach(small_vit, **spec), deviation=0.05), images)
    for path, found in logits.items():
        np.testing.assert_allclose(found, logits["branch"], rtol=1e-4, atol=1e-5, err_msg=path)
    assert len(logits) > 1 and jnp.abs(logits["branch"] - small_vit(images)).max() > 1e-3


@pytest.mark.parametrize(
    ("family", "product"),
    [
        pytest.param(family, product, marks=() if family == "circulant" else marks)
        for family in DISTINCT
        for product, marks in ((jax.lax.dot_general, ()), (dot_general, pytest.mark.slow))
    ],
)
def test_every_example_may_have_an_adapter_of_its_own(family, product):
    x = jax.random.normal(jax.random.key(0), (3, 5, 12))
    for path in paths.available("update", family):
        own = {"spec": PeftSpec(family=family, path=path), "dot_general": product}
        many = [randomize(updated(**own), seed=seed) for seed in range(3)]
        graphdef, _, frozen = surgery.split(nnx.Dict(query=many[0]))
        stacked = jax.tree.map(lambda *v: jnp.stack(v), *(surgery.split(nnx.Dict(query=one))[1] for one in many))
        loss = lambda t, x, g=graphdef, f=frozen: jnp.sum(jnp.sin(surgery.join(g, t, f).query(x)))  # noqa: E731
        together, by_itself = jax.jit(jax.vmap(jax.value_and_grad(loss)))(stacked, x), jax.jit(jax.value_and_grad(loss))
        for index in range(3):
            alone = by_itself(jax.tree.map(lambda v, i=index: v[i], stacked), x[index])
            for found, expected in zip(jax.tree.leaves(together), jax.tree.leaves(alone), strict=True):
                np.testing.assert_allclose(found[index], expected, rtol=1e-4, atol=1e-4, err_msg=path)


BEYOND = {
    "other class": ({"linear": Doubled}, "is a Doubled, which may do more than multiply"),
    "computes narrow": ({"dtype": jnp.float16}, "computes in float16, which rounds small updates away"),
    "stored narrow": ({"param_dtype": jnp.float16}, "computes in float16, which rounds small updates away"),
    "own product": ({"dot_general": lambda *a, **k: jax.lax.dot_general(*a, **k)}, "multiplies in a way of its own"),
}


@pytest.mark.parametrize(("options", "obstacle"), BEYOND.values(), ids=BEYOND)
def test_other_layers_keep_their_branch(options, obstacle):
    x = jax.random.normal(jax.random.key(0), (2, 6, 12))
    layer = randomize(updated(**options))
    assert layer._path(x) in ("branch", "branch_dft", "branch_dense")
    expected = layer.base(x).astype(jnp.float32) + x @ layer.delta.to_dense().T
    np.testing.assert_allclose(layer(x).astype(jnp.float32), expected, rtol=2e-2, atol=2e-2)
    assert layer(x).dtype == layer.base(x).dtype and jnp.abs(layer(x) - layer.base(x)).max() > 0.1
    with pytest.raises(InputError, match=f"query.*path='fused', but the layer {obstacle}; expected branch, branch_dft"):
        updated(spec=PeftSpec(path="fused"), **options)


@PRODUCTS
@pytest.mark.parametrize("path", paths.available("update", "circulant"))
@pytest.mark.parametrize("options", [{"use_bias": False}, {"precision": "highest"}], ids=str)
def test_every_path_computes_in_the_type_of_the_layer(path, options, product):
    layer = randomize(updated(spec=PeftSpec(path=path), dot_general=product, **options))
    x = jnp.ones((2, 6, 12), jnp.bfloat16)
    branch = layer.base(x) + x.astype(jnp.float32) @ layer.delta.to_dense().T
    assert layer(x).dtype == branch.dtype == jnp.float32
    np.testing.assert_allclose(layer(x), branch, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("method", ["update", "adapter"])
@pytest.mark.parametrize("family", ["circulant", "kronecker"])
@pytest.mark.parametrize("precision", ["highest", jax.lax.Precision.HIGHEST, ("highest", "highest")], ids=str)
@PRODUCTS
def test_every_path_multiplies_in_the_precision_of_the_layer(product, precision, family, method):
    for path in paths.available(method, family):
        spec = PeftSpec(method, family, targets="query", path=path)
        layer = updated(spec=spec, precision=precision, dot_general=product)
        graphdef, trainable, frozen = surgery.split(nnx.Dict(query=layer))
        loss = lambda t, x, g=graphdef, f=frozen: jnp.sum(surgery.join(g, t, f).query(x))  # noqa: E731
        text = str(jax.make_jaxpr(jax.grad(loss, argnums=(0, 1)))(trainable, jnp.ones((2, 12))))
        matmuls = [line for line in re.findall(r"dot_general\[(.*?)\]\s", text, re.DOTALL) if "precision" in line]
        assert len(matmuls) == text.count("dot_general[") > 1, path
        assert all("HIGHEST" in line for line in matmuls), path


PRECISIONS = {
    "fastest": "DEFAULT",
    "bfloat16_3x": "HIGH",
    ("default", "highest"): "HIGHEST",
    (jax.lax.Precision.HIGH, jax.lax.Precision.DEFAULT): "HIGH",
    "F32_F32_F32": "F32_F32_F32",
    jax.lax.DotAlgorithmPreset.F32_F32_F32: "F32_F32_F32",
    jax.lax.DotAlgorithmPreset.DEFAULT: "",
    jax.lax.DotAlgorithm(np.float32, np.float32, np.float32): "",
}


@pytest.mark.parametrize(("precision", "expected"), PRECISIONS.items(), ids=map(str, PRECISIONS))
def test_every_precision_that_a_layer_takes_is_the_branchs_too(precision, expected):
    layer = updated(precision=precision)  # flax takes it
    text = str(jax.make_jaxpr(lambda x: layer.delta(x, "branch_dense", precision))(jnp.ones((2, 12))))
    assert text.count("dot_general[") == 1
    assert (expected in text) if expected else ("precision" not in text)


@pytest.mark.parametrize("path", paths.available("update", "circulant"))
def test_a_plain_layer_keeps_its_forward_mode_derivative(path):
    layer, x = randomize(updated(spec=PeftSpec(path=path))), jnp.ones((2, 6, 12))
    _, tangent = jax.jvp(layer, (x,), (x,))
    np.testing.assert_allclose(tangent, layer(x) - layer.base.bias[...], rtol=1e-4, atol=1e-5)


@PRODUCTS
@pytest.mark.parametrize("family", DISTINCT)
def test_the_fused_path_keeps_of_the_batch_its_input_alone(family, product, capsys):
    layer, x = updated(spec=PeftSpec(family=family, path="fused"), dot_general=product), jnp.ones((5, 7, 12))
    graphdef, trainable, frozen = surgery.split(nnx.Dict(query=layer))
    loss = lambda trainable, x: jnp.sum(surgery.join(graphdef, trainable, frozen).query(x))  # noqa: E731
    print_saved_residuals(loss, trainable, x)
    kept = re.findall(r"^\w+\[([\d,]*)\]", capsys.readouterr().out, re.MULTILINE)
    assert kept.count("5,7,12") == 1
    own = [*trainable.values(), *layer.delta.values().values()]
    assert {*kept} - {"5,7,12"} <= {",".join(map(str, value.shape)) for value in own} | {"12,12"}


def blocks(path: str, family: str, count: int) -> tuple:
    """A stack of layers as surm's models have them, taken apart."""
    linear = functools.partial(nnx.Linear, 48, 48, dot_general=dot_general)
    model = nnx.Dict({f"query{index}": linear(rngs=nnx.Rngs(index)) for index in range(count)})
    spec = PeftSpec(family=family, targets=r"query\d", path=path)
    return surgery.split(surm.attach(model, spec, nnx.Rngs(9)))


def loss_of_all(graphdef, trainable, frozen, x):
    for _, layer in surgery.wrapped_layers(surgery.join(graphdef, trainable, frozen)):
        x = jnp.tanh(layer(x))
    return jnp.sum(x**2)


def test_fused_the_merged_kernels_do_not_wait_for_the_backward_pass():
    def temporary(path):
        graphdef, trainable, frozen = blocks(path, "low_rank", count=8)
        loss = lambda trainable, frozen, x: loss_of_all(graphdef, trainable, frozen, x)  # noqa: E731
        compiled = jax.jit(jax.grad(loss)).lower(trainable, frozen, jnp.ones((512, 48))).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert temporary("fused") - temporary("branch") < 4 * (4 * 48 * 48)  # four kernels of the eight


def test_fused_a_kernel_that_trains_too_has_its_gradient():
    x, gradients = jax.random.normal(jax.random.key(0), (3, 5, 48)), {}
    for path in ("fused", "branch"):
        graphdef, trainable, frozen = blocks(path, "circulant", count=2)
        trainable = jax.tree.map(lambda v: v + 0.01, trainable)
        loss = lambda frozen, g=graphdef, t=trainable: loss_of_all(g, t, frozen, x)  # noqa: E731
        gradients[path] = jax.jit(jax.grad(loss))(frozen)
    for found, expected in zip(*map(jax.tree.leaves, gradients.values()), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_what_a_layer_may_fuse_is_asked_when_it_multiplies(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    x = jnp.ones((2, 12))
    with jax.default_matmul_precision("highest"):
        layer = updated(spec=PeftSpec(path="fused"))
        assert layer._path(x) == "fused"
    with pytest.raises(InputError, match="path='fused', but the layer multiplies float32 in less than its precision"):
        layer(x)


def test_a_matrix_beside_a_layer_names_the_paths_that_it_has():
    matrix = updated(spec=PeftSpec(family="low_rank")).delta
    for path in ("branch_dft", "fused", "fast"):
        with pytest.raises(ValueError, match=f"given path='{path}'; expected branch, branch_dense$"):
            matrix(jnp.ones((2, 12)), path)


def test_the_path_is_no_part_of_what_is_trained():
    assert PeftSpec(path="branch") == PeftSpec() and "path" not in PeftSpec(path="branch").to_json()
    with pytest.raises(InputError, match=r"path='fused' with dropout=0.1; expected branch, .* or auto, or dropout=0"):
        PeftSpec(path="fused", dropout=0.1)


@pytest.mark.parametrize(
    ("spec", "there_are"),
    [
        (
            {"path": "fast"},
            "update circulant has branch, branch_dft, branch_dense, fused, fused_dft, fused_dense and auto",
        ),
        (
            {"family": "low_rank", "path": "branch_dft"},
            "low_rank has branch, branch_dense, fused, fused_dense and auto",
        ),
        ({"method": "adapter", "path": "fused"}, "adapter circulant has branch, branch_dft, branch_dense and auto"),
        ({"method": "bottleneck", "path": "branch_dft"}, "bottleneck has none but auto"),
    ],
)
def test_a_path_that_is_not_there_is_refused_with_those_that_are(spec, there_are):
    with pytest.raises(InputError, match=f"path={spec['path']!r}; .*{there_are}$"):
        PeftSpec(**spec)


@pytest.mark.parametrize("method", ["update", "adapter"])
def test_the_path_of_a_loaded_adapter_can_be_set(small_vit, images, tmp_path, method):
    adapted = randomize(attach(small_vit, method=method, path="branch_dense"))
    surm.save_adapter(tmp_path / "adapter", adapted, base_name="small")
    loaded = surm.load_adapter(tmp_path / "adapter", small_vit)
    assert surgery.spec_of(loaded).path == "auto"
    for path in paths.available(method, "circulant"):
        other = surm.with_path(loaded, path)
        assert {layer.path for _, layer in surgery.wrapped_layers(other)} == {path} == {surgery.spec_of(other).path}
        np.testing.assert_allclose(answer(other, images), answer(loaded, images), rtol=1e-4, atol=1e-5)
    assert {layer.path for _, layer in surgery.wrapped_layers(loaded)} == {"auto"}
    with pytest.raises(InputError, match=f"path='fast'; {method} circulant has branch"):
        surm.with_path(loaded, "fast")


def test_a_path_is_set_only_where_it_can_be_taken(small_vit):
    with pytest.raises(InputError, match="path='branch', but the model has no adapter"):
        surm.with_path(small_vit, "branch")
    narrow = surm.attach(nnx.Dict(query=nnx.Linear(4, 4, dtype="float16", rngs=nnx.Rngs(0))), PeftSpec(), nnx.Rngs(1))
    with pytest.raises(InputError, match="query: path='fused', but the layer computes in float16"):
        surm.with_path(narrow, "fused")
