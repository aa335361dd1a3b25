"""Faults that the tests must find: in every room a few, each one line of the package made wrong."""

from typing import NamedTuple


class Mutant(NamedTuple):
    """One fault.

    Attributes:
      file: under `surm/`.
      old: a text that the file has exactly once.
      new: what stands there in the mutant.
      tests: what is expected to kill it: arguments of pytest, tests that run in seconds.
    """

    file: str
    old: str
    new: str
    tests: str


LAWS, PATHS = "tests/matrices/test_matrix_laws.py", "tests/matrices/test_matrix_paths.py"
STRIPS, ACCELERATORS = "tests/matrices/test_strips.py", "tests/peft/test_accelerators.py"
HLO, PODS, SPREAD = "tests/test_hlo.py", "tests/test_pods.py", "tests/test_spread.py"
DENSE = f"{LAWS}::test_matvec_is_the_dense_product"

MUTANTS = [
    # matrices
    Mutant(
        "matrices/kronecker.py", "b.swapaxes(1, 2), a.swapaxes(1, 2)", "b.swapaxes(1, 2), a", f"{DENSE}[kronecker-12x6]"
    ),
    Mutant(
        "matrices/kronecker.py",
        'jnp.einsum("...tpq,trq->...pr", left, a)',
        'jnp.einsum("...tpq,trq->...pr", left, -a)',
        f"{DENSE}[kronecker-rank=6-12x6]",
    ),
    Mutant(
        "matrices/low_rank.py",
        "return rank * (n_out + n_in)",
        "return rank * (n_out + n_in - 1)",
        f"{LAWS}::test_num_params_counts_the_leaves[float32-low_rank-8x13]",
    ),
    Mutant(
        "matrices/low_rank.py",
        '"b": (u * (s / of_a)[None])',
        '"b": (u * of_a[None])',
        "tests/matrices/test_matrix_projections.py::test_zero_is_projected_to_zero[low_rank]",
    ),
    Mutant(
        "matrices/skew_circulant.py", "n_out, -1, convolve)", "n_out, 1, convolve)", f"{DENSE}[skew_circulant-8x13]"
    ),
    Mutant(
        "matrices/monarch.py",
        ".reshape(*x.shape[:-1], r, k)",
        ".reshape(*x.shape[:-1], k, r).mT",
        f"{DENSE}[monarch-12x6]",
    ),
    Mutant(
        "matrices/monarch.py",
        "jnp.tril(earlier, -1)",
        "jnp.tril(earlier, -2)",
        f"{LAWS}::test_projecting_a_member_gives_it_back -k monarch",
    ),
    Mutant("matrices/monarch.py", "->omji", "->moji", f"{PATHS} -k monarch"),
    Mutant(
        "matrices/diagonal_circulant.py",
        'params["left"][:, None] * middle',
        'params["left"][::-1, None] * middle',
        f"{DENSE}[diagonal_circulant-8x13]",
    ),
    Mutant(
        "matrices/diagonal_circulant.py",
        "turns * jnp.prod(turns[0]) if p % 2 else turns",
        "turns",
        f"{LAWS}::test_projecting_a_member_gives_it_back -k diagonal",
    ),
    Mutant(
        "matrices/circulant.py",
        "f_circulant.to_dense(params, n_out, n_in, 1)",
        "f_circulant.to_dense(params, n_out, n_in, -1)",
        f"{DENSE}[circulant-8x13]",
    ),
    # algebra
    Mutant(
        "matrices/algebra/fourier.py",
        "return x if f == 1 else x * _signs(x)",
        "return x",
        f"{DENSE}[skew_circulant-7x7]",
    ),
    Mutant(
        "matrices/algebra/fourier.py",
        "halves * _eta_powers(n, halves).conj()",
        "halves * _eta_powers(n, halves)",
        f"{DENSE}[skew_circulant-16x16]",
    ),
    Mutant(
        "matrices/algebra/dft.py",
        "v[n - x.shape[-1] + 1 :]",
        "v[n - x.shape[-1] :]",
        f"{PATHS}::test_the_dft_gives_the_dense_product[circulant-8x13]",
    ),
    Mutant(
        "matrices/algebra/dft.py",
        "cos * real - sin * imaginary, sin",
        "cos * real + sin * imaginary, sin",
        f"{PATHS}::test_the_dft_gives_the_dense_product[circulant-12x6]",
    ),
    Mutant(
        "matrices/algebra/diagonals.py",
        "start_of_last = n_in - 1 - (count - 1) * step",
        "start_of_last = n_in - (count - 1) * step",
        f"{PATHS} -k columns_are_those_of_the_dense_matrix",
    ),
    Mutant(
        "matrices/algebra/strips.py",
        "[None, :] < jnp.arange(n_in)[:, None] % block",
        "[None, :] <= jnp.arange(n_in)[:, None] % block",
        f"{PATHS} -k 'strips_of_every_width and toeplitz and 20'",
    ),
    # strips on accelerators
    Mutant("matrices/algebra/strips.py", "jnp.pad(first, (above, 0))", "jnp.pad(first, (0, above))", STRIPS),
    Mutant("matrices/algebra/strips.py", "jnp.triu(", "jnp.tril(", STRIPS),
    Mutant("matrices/algebra/strips.py", "return back[::-1, :length]", "return back[:, :length]", STRIPS),
    Mutant("matrices/algebra/strips.py", "n_out * m * n_in >= _PAY.get", "n_out * n_in >= _PAY.get", STRIPS),
    Mutant("matrices/algebra/toeplitz_vector.py", "given[1:, :-1]", "given[:-1, :-1]", STRIPS),
    Mutant(
        "matrices/algebra/toeplitz_vector.py",
        "padding = of_x + of_y - 1, of_x * b - n_in",
        "padding = of_x + of_y - 1, 0",
        STRIPS,
    ),
    Mutant(
        "matrices/algebra/shift_product.py",
        "f_circulant.columns(h, block, n_in, -f)",
        "f_circulant.columns(h, block, n_in, -1)",
        STRIPS,
    ),
    Mutant("matrices/algebra/shift_product.py", "[f * v[..., n - n_in + 1 :]", "[v[..., n - n_in + 1 :]", STRIPS),
    Mutant("matrices/algebra/shift_product.py", "f * v[:, :0:-1]", "v[:, :0:-1]", STRIPS),
    Mutant(
        "matrices/algebra/toeplitz_product.py",
        "_by_products(right[::-1], left[::-1]",
        "_by_products(right, left",
        STRIPS,
    ),
    Mutant("matrices/algebra/toeplitz_product.py", "top = 1 - block - above", "top = 1 - block", STRIPS),
    Mutant(
        "peft/multiply/paths.py",
        "if large and _small_products",
        "if _small_products",
        f"{ACCELERATORS} -k vectors",
    ),
    Mutant("peft/multiply/paths.py", '{"tpu": 2048}, 512', "{}, 512", f"{ACCELERATORS} -k vectors"),
    Mutant("peft/multiply/paths.py", "_HUGE = 2**24", "_HUGE = 2**24 + 1", f"{ACCELERATORS} -k huge"),
    Mutant("peft/multiply/paths.py", "rows >= from_here", "rows > from_here", f"{ACCELERATORS} -k huge"),
    Mutant(
        "peft/multiply/paths.py",
        '"fused_dft": "branch_dft"',
        '"fused_dft": "branch"',
        f"{ACCELERATORS} -k small_products",
    ),
    Mutant(
        "peft/matrix.py",
        "return by_rows(functools.partial(self._matvec, convolve=dft.convolve))(params, x)",
        "return self._matvec(params, x, convolve=dft.convolve)",
        "tests/test_spread.py -k added_up",
    ),
    Mutant(
        "peft/multiply/paths.py",
        "2 * terms * dft.entries(length) <= n_out * n_in",
        "True",
        f"{ACCELERATORS} -k have_to_be_small",
    ),
    Mutant(
        "peft/multiply/paths.py",
        "fourier.smooth_length(2 * longest - 1)",
        "longest",
        f"{ACCELERATORS} -k have_to_be_small",
    ),
    Mutant("peft/multiply/paths.py", "in _IN_HUGE and terms == 1", "in _IN_HUGE", f"{ACCELERATORS} -k several_terms"),
    Mutant("matrices/algebra/dft.py", "y.shape[-2] * y.shape[-1])", "-1)", f"{PATHS} -k empty_batch"),
    Mutant("training/calibration.py", '("branch", "fused")]', '("branch",)]', "tests/test_calibration.py -k with_ffts"),
    Mutant(
        "training/calibration.py",
        '    say(f"measuring',
        '    str(f"measuring',
        "tests/test_calibration.py -k measures_the",
    ),
    Mutant("training/pods.py", "    if step.paths:", "    if False:", "tests/test_pods.py -k only_just"),
    Mutant("peft/multiply/calibrated.py", "found[matrix] = path", "pass", "tests/peft/test_calibrated.py -k is_listed"),
    Mutant("matrices/algebra/dft.py", "f * v[:first]", "v[:first]", f"{PATHS} -k some_entries"),
    Mutant("matrices/algebra/dft.py", "analysis[:m]", "analysis[-m:]", f"{PATHS} -k some_entries"),
    Mutant("matrices/algebra/dft.py", "m = -(-x.shape[-1] // q)", "m = analysis.shape[0]", f"{PATHS} -k zeros"),
    Mutant("training/estimate.py", "if asked else []", "if False else []", "tests/test_train.py -k dry_run"),
    # half precision
    Mutant(
        "ops/rounding.py",
        "jnp.uint32) + noise) >> _LOW << _LOW",
        "jnp.uint32)) >> _LOW << _LOW",
        "tests/test_rounding.py",
    ),
    Mutant(
        "ops/rounding.py",
        "_mixed(rows[:, None] ^ columns[None]) >> _LOW",
        "(rows[:, None] + columns[None]) >> _LOW",
        "tests/test_rounding.py",
    ),
    Mutant(
        "ops/rounding.py", "_LOW = 16", "_LOW = 15", "tests/test_rounding.py::test_what_bfloat16_has_stays_as_it_is"
    ),
    Mutant(
        "peft/multiply/fused.py",
        "merged = dithered(kernel.astype(jnp.float32) + update.astype(jnp.float32))",
        "merged = kernel + update.astype(kernel.dtype)",
        "tests/peft/test_fused_half.py -k below",
    ),
    Mutant(
        "peft/multiply/fused.py",
        "kernel.dense(dtype, after) if isinstance(kernel, Packed)",
        "kernel.dense(jnp.float32, after) if isinstance(kernel, Packed)",
        "tests/peft/test_fused_half.py -k before_training",
    ),
    Mutant(
        "peft/multiply/fused.py",
        "(forward if keep and on_cpu else jax.checkpoint(forward))",
        "(forward if keep else jax.checkpoint(forward))",
        "tests/peft/test_fused_half.py -k keeps_no_matrix",
    ),
    Mutant(
        "peft/multiply/fused.py",
        'getattr(base, "dot_general", dot_general) is dot_general',
        "base.dot_general is dot_general",
        "tests/peft/test_fused_half.py -k merged_into",
    ),
    Mutant(
        "peft/multiply/fused.py",
        "d_x = half_product(dy, merged.T, precision)",
        "d_x = half_product(dy, merged, precision)",
        "tests/peft/test_fused_half.py -k gradients",
    ),
    Mutant(
        "peft/multiply/paths.py",
        "_LARGE = 2**22",
        "_LARGE = 2**26",
        "tests/peft/test_accelerators.py -k nothing_is_measured",
    ),
    Mutant(
        "peft/multiply/paths.py",
        "if len(measured) > 1:",
        "if measured:",
        "tests/peft/test_calibrated.py -k at_least_two",
    ),
    Mutant(
        "peft/multiply/calibrated.py",
        "_FURTHEST = 2.0",
        "_FURTHEST = 4.0",
        "tests/peft/test_calibrated.py -k factor_of_two",
    ),
    Mutant(
        "peft/multiply/calibrated.py",
        "for name in own if before",
        'for name in ("jax", "jaxlib") if before',
        "tests/peft/test_calibrated.py -k measured_elsewhere",
    ),
    Mutant(
        "training/calibration.py",
        "    if begun:",
        "    if False:",
        "tests/test_calibration.py -k keeps_the_measurements",
    ),
    Mutant(
        "peft/multiply/calibrated.py",
        "found = [*earlier]",
        "found = []",
        "tests/test_calibration.py -k measures_the_matrices",
    ),
    Mutant(
        "ops/spread.py",
        "shape[ROWS] if spreading else 1",
        "shape[ROWS] if False else 1",
        "tests/test_manual_axes.py -k two_virtual",
    ),
    Mutant(
        "matrices/algebra/diagonals.py",
        "rows[..., have - rest :, :width]",
        "rows[..., :rest, :width]",
        "tests/peft/test_accelerators.py -k columns_are",
    ),
    # peft
    Mutant(
        "peft/adapters.py",
        "change = change + self.map.beside(self.shift[...], y)",
        "change = change - self.map.beside(self.shift[...], y)",
        "tests/peft/test_surgery.py::test_the_adapter_position_follows_its_formula",
    ),
    Mutant(
        "peft/layers.py",
        "return y + ((gain - 1) * (y - bias))",
        "return y + ((gain - 1) * y)",
        "tests/peft/test_layers.py",
    ),
    Mutant(
        "peft/together/arithmetic.py",
        "shares = [weight / sum(weights) for weight in weights]",
        "shares = weights",
        "tests/peft/test_arithmetic.py",
    ),
    Mutant(
        "peft/schedules/rank_budget.py",
        "progress = jnp.clip((jnp.asarray(step) - begin)",
        "progress = jnp.clip((jnp.asarray(step) + 1 - begin)",
        "tests/test_methods.py::test_a_budget_waits_for_the_adapter_and_is_met_however_late",
    ),
    Mutant(
        "peft/schedules/rank_budget.py",
        "applied & ~mask, -params[of_gate]",
        "applied & mask, -params[of_gate]",
        "tests/test_methods.py::test_a_budget_against_numpy[adalora]",
    ),
    Mutant(
        "peft/surgery.py",
        "_retype(model, trained, nnx.Param)",
        "_retype(model, trained[1:], nnx.Param)",
        "tests/peft/test_surgery.py -k detach",
    ),
    # models
    Mutant(
        "models/attention.py",
        "query.shape[-1] ** -0.5",
        "query.shape[-2] ** -0.5",
        "tests/models/test_attention.py tests/models/test_golden.py",
    ),
    Mutant(
        "models/attention.py",
        "mask[:, None, None, :]",
        "mask[:, None, :, None]",
        "tests/models/test_attention.py tests/models/test_bert.py",
    ),
    Mutant(
        "models/normalization.py",
        "dx = d - d.mean(axis=-1, keepdims=True) - normal",
        "dx = d - normal",
        "tests/models/test_normalization.py",
    ),
    Mutant(
        "models/bert.py",
        "return self.positions - self.first_position",
        "return self.positions",
        "tests/models/test_bert.py",
    ),
    # data
    Mutant(
        "data/share.py",
        "return slice(self.index * size, (self.index + 1) * size)",
        "return slice(self.index * size, self.index * size + 1)",
        "tests/data/test_share.py",
    ),
    Mutant(
        "data/share.py",
        "self._parent[first + place]",
        "self._parent[place]",
        "tests/data/test_share.py tests/data/test_pipeline.py",
    ),
    Mutant(
        "data/sources.py",
        "examples // num_classes + (label < examples % num_classes)",
        "examples // num_classes",
        "tests/data/test_sources.py",
    ),
    Mutant(
        "data/balanced.py",
        "(place < len(labels) % len(classes))",
        "(place <= len(labels) % len(classes))",
        "tests/data/test_balanced.py",
    ),
    Mutant(
        "data/pipeline.py",
        "row, column = rng.integers(0, 2 * pad + 1, size=2)",
        "row, column = 0, 0",
        "tests/data/test_pipeline.py",
    ),
    Mutant(
        "data/tokens.py",
        "rng = np.random.default_rng((seed, number_of_pass))",
        "rng = np.random.default_rng((seed, 0))",
        "tests/data/test_tokens.py",
    ),
    # tasks
    Mutant("tasks/metrics.py", "count * (count + 1) / 2", "count * (count - 1) / 2", "tests/test_metrics.py"),
    Mutant(
        "tasks/metrics.py",
        "s * s - sum(k * k for k in p), s * s - sum(k * k for k in t)",
        "s * s - sum(k * k for k in p), s * s + sum(k * k for k in t)",
        "tests/test_metrics.py",
    ),
    Mutant(
        "tasks/metrics.py",
        "labels * classes + predicted, minlength",
        "predicted * classes + labels, minlength",
        "tests/test_metrics.py",
    ),
    Mutant(
        "tasks/balance.py",
        "len(data.train) / (there * np.maximum(counts, 1))",
        "len(data.train) / (len(counts) * np.maximum(counts, 1))",
        "tests/test_balance.py -k 'not parts and not loss'",
    ),
    Mutant("tasks/metric.py", 'self.better == "more" else', 'self.better == "less" else', "tests/test_choosing.py"),
    # training
    Mutant(
        "tasks/labels.py",
        '{"loss": jnp.sum(losses, where=mask), ',
        '{"loss": jnp.sum(losses), ',
        "tests/test_task.py::test_a_row_of_zeros_weighs_nothing",
    ),
    Mutant(
        "training/step.py",
        '"step": state["step"] + 1}',
        '"step": state["step"] + 2}',
        "tests/test_step.py::test_an_average_is_kept_and_answers",
    ),
    Mutant(
        "training/optim.py",
        "family.learning_rate / math.sqrt(",
        "family.learning_rate * math.sqrt(",
        "tests/test_optim.py",
    ),
    Mutant(
        "training/members.py",
        "itertools.product(*lists.values())",
        "zip(*lists.values())",
        "tests/test_population.py::test_members_are_the_product_in_order",
    ),
    Mutant(
        "training/loop.py",
        '"data": self.batches.get_state()',
        '"data": self.prepared.training_batches(0).get_state()',
        "tests/test_choosing.py tests/test_going_on.py",
    ),
    # rundir
    Mutant(
        "rundir/going_on.py",
        'DECISIONS.get(key, "decides")',
        'DECISIONS.get(key, "free")',
        "tests/test_going_on.py::test_a_key_that_was_not_known_decides",
    ),
    Mutant(
        "rundir/going_on.py",
        '!= "last" else "free"',
        '== "last" else "free"',
        "tests/test_going_on.py -k how_often_is_evaluated",
    ),
    Mutant(
        "rundir/log.py",
        "if not math.isfinite(value)]",
        "if math.isnan(value)]",
        "tests/test_progress.py",
    ),
    Mutant(
        "rundir/checkpoint.py",
        "sorted(self._manager.all_steps(), reverse=True)",
        "sorted(self._manager.all_steps())",
        "tests/test_checkpoint.py",
    ),
    # exchange
    Mutant(
        "exchange/c3a.py",
        "np.roll(columns[:, :, ::-1], 1, axis=2)",
        "np.roll(columns[:, :, ::-1], 0, axis=2)",
        "tests/exchange/test_peft_export.py",
    ),
    Mutant(
        "exchange/lora.py",
        'whole(update.scale * len(update.params["a"]))',
        "whole(update.scale)",
        "tests/exchange/test_peft_export.py",
    ),
    # models
    Mutant(
        "models/causal_attention.py",
        "(slots > own - window)",
        "(slots >= own - window)",
        "tests/models/test_decoder.py::test_the_mask_is_its_definition",
    ),
    Mutant(
        "models/gguf/kinds.py",
        "rows.reshape(heads, -1, 2, *rows.shape[1:])",
        "rows.reshape(heads, 2, -1, *rows.shape[1:])",
        "tests/models/test_gguf.py::test_a_file_gives_what_safetensors_give",
    ),
    Mutant(
        "models/gguf/config.py",
        '"tie_word_embeddings": "output.weight" not in stored',
        '"tie_word_embeddings": True',
        "tests/models/test_gguf.py::test_an_output_of_its_own_unties_the_model",
    ),
    Mutant(
        "models/convert.py",
        "key=lambda item: -arrays[item[0]].nbytes",
        "key=lambda item: arrays[item[0]].nbytes",
        "tests/models/test_lazy.py::test_what_a_variable_holds_is_made_by_the_caller",
    ),
    Mutant(
        "data/tokenizer_gguf.py",
        "normalized=False, special=False)",
        "normalized=False, special=True)",
        "tests/data/test_tokenizer_gguf.py -k special_tokens_stay_whole",
    ),
    Mutant(
        "models/rotary.py",
        "second * cosine + first * sine",
        "second * cosine - first * sine",
        "tests/models/test_decoder.py::test_a_rotation_is_a_product_of_complex_numbers",
    ),
    Mutant(
        "models/rotary_scaling.py",
        "return (1 - kept) * plain / self.factor + kept * plain",
        "return plain / self.factor",
        "tests/models/test_decoder.py::test_scalings_are_their_definitions",
    ),
    Mutant(
        "models/decoder.py",
        "masks[layer.window]",
        "masks[layers[0].window]",
        "tests/models/test_golden.py::test_recorded_logits_of_decoders_are_met[gemma3]",
    ),
    Mutant(
        "models/fused.py",
        "heads[..., group, :], heads[..., group + 1, :]",
        "heads[..., group + 1, :], heads[..., group, :]",
        "tests/models/test_decoder_files.py -k internlm",
    ),
    Mutant(
        "models/gemma_files.py",
        "number % 2 == 0",
        "number % 2 == 1",
        "tests/models/test_decoder_fields.py -k windows",
    ),
    Mutant(
        "models/decoder_files.py",
        "if not np.array_equal(arrays[_WORDS], arrays[_OUTPUT].T):",
        "if False:",
        "tests/models/test_decoder_files.py -k unties",
    ),
    # small memory
    Mutant(
        "models/cross_entropy.py",
        "(d_loss[..., None] * slopes)",
        "(slopes)",
        "tests/models/test_cross_entropy.py::test_values_and_both_gradients_are_optaxs[kernel-4]",
    ),
    Mutant(
        "models/cross_entropy.py",
        "(first == targets)",
        "(wide.argmin(axis=-1) == targets)",
        "tests/models/test_cross_entropy.py::test_the_most_probable_words_are_correct_and_others_are_not",
    ),
    Mutant(
        "models/scanned.py",
        "apply(run.first + place, part",
        "apply(run.first, part",
        "'tests/models/test_scanned.py::test_a_scan_gives_what_blocks_one_by_one_give[rules]'",
    ),
    Mutant(
        "models/scanned.py",
        " and all(of(other) == of(path) for other in together)",
        "",
        "tests/models/test_scanned.py::test_packing_is_undone",
    ),
    Mutant(
        "ops/packed.py",
        "(low & 15) | (high << 4)",
        "(high & 15) | (low << 4)",
        "tests/peft/test_base_dtype.py::test_int4_is_the_rounding_of_qwix",
    ),
    Mutant(
        "ops/packed.py",
        "dense if transposed else dense.T, precision), None",
        "dense.T if transposed else dense, precision), None",
        "tests/peft/test_base_dtype.py -k test_the_product_and_its_slope",
    ),
    Mutant(
        "peft/base_dtype.py",
        'None if f"{name}.kernel" in trained else',
        'None if f"{name}.scale" in trained else',
        "tests/peft/test_base_dtype.py::test_what_trains_is_not_packed",
    ),
    Mutant(
        "training/step.py",
        "return unpack(new), values",
        "return new, values",
        "tests/test_stacking.py::test_two_steps_are_those_without_a_scan",
    ),
    # report
    Mutant(
        "report/lines.py",
        "-main.goodness(values[main.name]), values",
        "main.goodness(values[main.name]), values",
        "tests/report tests/test_sweeps.py",
    ),
    Mutant(
        "report/compare.py",
        "rows.sort(key=lambda row: (-goodness(row.mean(main)",
        "rows.sort(key=lambda row: (goodness(row.mean(main)",
        "tests/report",
    ),
    # sweeps
    Mutant("sweeps/overrides.py", "if len({len(axis) for axis in axes}) > 1:", "if False:", "tests/test_sweeps.py"),
    Mutant(
        "sweeps/overrides.py",
        "if both := merged.keys() & overrides.keys():",
        "if both := set():",
        "tests/test_sweeps.py",
    ),
    Mutant(
        "training/loop.py",
        "        state = self.program.packing.pack(state)\n",
        "",
        "tests/language/test_language_run.py::test_a_stopped_run_goes_on_exactly",
    ),
    Mutant(
        "training/loop.py",
        'self.program.packing.pack({"trainable": self.best.arrays})',
        '{"trainable": self.best.arrays}',
        "tests/language/test_language_run.py::test_the_best_step_is_that_of_least_loss",
    ),
    Mutant(
        "training/loop.py",
        "self.program.packing.unpack(meshes.take(self.mesh, packed))",
        "meshes.take(self.mesh, packed)",
        "tests/language/test_language_run.py::test_a_stopped_run_goes_on_exactly",
    ),
    Mutant(
        "training/runs.py",
        'return "" if at.path else at.repository',
        "return at.repository",
        "tests/language/test_language_exchange.py::test_a_file_on_the_hub_is_no_base_that_others_open",
    ),
    Mutant(
        "ops/gating.py",
        "_derivative(activation)(slope, *saved)",
        "_derivative(activation)(slope, *saved[::-1])",
        "tests/test_gating.py",
    ),
    Mutant(
        "ops/matmul.py",
        "        return wide.astype(x.dtype)",
        "        return wide",
        "tests/test_matmul.py",
    ),
    Mutant(
        "models/generation.py",
        "min(room * _WIDER, self._most)",
        "min(room + 1, self._most)",
        "tests/models/test_generation.py::test_the_cache_grows_with_the_text",
    ),
    Mutant(
        "models/weights.py",
        "return _open_gguf(name, hub.fetched_file(name))",
        "return _open_folder(name, hub.fetched(name, DOWNLOADED))",
        "tests/models/test_weights.py -k hub",
    ),
    Mutant(
        "models/weights.py",
        '"*.jinja", ',
        "",
        "tests/models/test_weights.py -k hub",
    ),
    Mutant(
        "models/decoder.py",
        "if cache is not None and targets is not None:",
        "if False:",
        "tests/models/test_decoder.py -k targets_beside",
    ),
    Mutant(
        "report/inspection.py",
        "None in counts or counts[0] != counts[2]",
        "counts[0] != counts[2]",
        "tests/test_commands.py -k rate_of_a_head",
    ),
    Mutant(
        "report/inspection.py",
        "if None in counts or counts",
        "if True or counts",
        "tests/test_commands.py -k rate_of_a_head",
    ),
    Mutant(
        "training/optim.py",
        "counted.adapter == counted.trainable",
        "False",
        "tests/test_optim.py -k rates_in_a_line",
    ),
    Mutant(
        "models/scanned.py",
        "(np if isinstance(values[0], np.ndarray) else jnp).stack",
        "jnp.stack",
        "tests/test_stacking.py -k packed_state",
    ),
    Mutant(
        "rundir/checkpoint_files.py",
        " or not place.is_relative_to(folder.resolve())",
        "",
        "tests/test_checkpoint.py -k archive",
    ),
    Mutant(
        "rundir/checkpoint_files.py",
        "not (member.isfile() or member.isdir()) or not place",
        "not place",
        "tests/test_checkpoint.py -k archive",
    ),
    # what a step takes elsewhere, and how it is spread
    Mutant("training/hlo.py", "waiting.append((called, times * more))", "waiting.append((called, more))", HLO),
    Mutant(
        "training/hlo.py",
        'return [(called["body"][0], 1 if trips is None else trips)]',
        'return [(called["body"][0], 1)]',
        HLO,
    ),
    Mutant("training/hlo.py", "int(space or 0)", "0", HLO),
    Mutant("training/collectives.py", "return 2 * whole * others", "return whole * others", HLO),
    Mutant("training/collectives.py", "else parts[1]", "else parts[0]", HLO),
    Mutant("training/collectives.py", "channel[1] if channel else one.name", "one.name", HLO),
    Mutant("training/collectives.py", "int(part) if part else sizes[name]", "sizes[name]", HLO),
    Mutant("training/traffic.py", "if not (on_chip and array.space)", "", HLO),
    Mutant("training/traffic.py", "total += times * sum", "total += sum", HLO),
    Mutant("training/traffic.py", "size = min(size, sum(_whole(user) for user in used))", "pass", HLO),
    Mutant("training/operations.py", "return max(each)", "return sum(each)", HLO),
    Mutant("training/operations.py", 'given["length"] * sum(each)', "sum(each)", HLO),
    Mutant(
        "training/operations.py", "inner, _ = partial_eval.dce_jaxpr(inner, [True] * len(inner.outvars))", "pass", HLO
    ),
    Mutant(
        "training/pods.py", "return max(self.bounds.values())", "return sum(self.bounds.values())", f"{PODS} -k told"
    ),
    Mutant("training/pods.py", "missing = lengths[-1] -", "missing = lengths[0] -", f"{PODS} -k greatest"),
    Mutant("training/pods.py", "if full[1] else full.groups()[2:]", "", f"{PODS} -k memory"),
    Mutant("sweeps/described.py", 'if not flag.startswith("--workdir=")', "", f"{PODS} -k row"),
    Mutant("ops/spread.py", 'jax.lax.pcast(params, ROWS, to="varying")', "params", SPREAD),
    Mutant("ops/spread.py", "and x.shape[0] % mesh.shape[ROWS] == 0", "", SPREAD),
    Mutant("ops/spread.py", "if after is not None:", "if False:", SPREAD),
    Mutant("models/cross_entropy.py", "[whole(leaf) if", "[leaf if", SPREAD),
    # machine
    Mutant(
        "machine/mesh.py",
        "config.optim.batch_size % (over * parts)",
        "config.optim.batch_size % over",
        "tests/test_mesh.py -k 'not virtual' tests/test_step.py",
    ),
    Mutant(
        "machine/processes.py",
        "not text.isdecimal():",
        "not text:",
        "tests/test_processes.py::test_flags_that_are_no_numbers_and_no_addresses_are_refused",
    ),
    Mutant("machine/targets.py", 'if not switches["dry_run"]:', "if False:", "tests/test_targets.py -k refused"),
    Mutant("machine/targets.py", '"1x{hosts}x{cards}"', '"1x{cards}x{hosts}"', "tests/test_targets.py -k hosts"),
    Mutant("machine/targets.py", 'if kind == "v4":', 'if kind == "v5p":', "tests/test_targets.py -k sold"),
    Mutant("machine/targets.py", "if not _installed(name)]", "if False]", "tests/test_targets.py -k missing"),
    Mutant("machine/chips.py", "989.4e12, 3350e9", "1979e12, 3350e9", "tests/test_targets.py -k together"),
    # cli
    Mutant(
        "cli/command_line.py",
        'if text == "None" and default is None:',
        'if text == "None":',
        "tests/test_config.py tests/test_commands.py",
    ),
    Mutant(
        "cli/command_line.py",
        "_check_is_config(chosen, given)",
        "pass",
        "tests/test_config.py tests/test_bad_input.py -k config",
    ),
]
