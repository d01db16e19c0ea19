# The one way to do each thing. `make` prints the list.
PORT ?= 8000
DARKROOM_HOME ?= .darkroom
ONCE ?=
PROMPT ?=

BIN := .venv/bin
RUN_EXTRAS := gateway worker cli embedded
DEV_EXTRAS := $(RUN_EXTRAS) tracing training dev
# As many as there are cores, each with servers of its own; a file of tests is one process' business. One shared Redis, one
# process.
TEST_PROCESSES := $(if $(TEST_REDIS_URL),,--numprocesses=auto --maxprocesses=4 --dist=loadfile)
TRAINING_STAGES := data autoencoder text-encoder denoiser lora controlnet textual-inversion classifier evaluate evaluate-extras

.DEFAULT_GOAL := help
.PHONY: help run test check check-gateway openapi lint-openapi fuzz-api bench train clean environment environment-dev

help: ## Print this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

environment:
	@python3 service/cli/bootstrap.py $(RUN_EXTRAS)

environment-dev:
	@python3 service/cli/bootstrap.py $(DEV_EXTRAS)

run: environment ## Start everything, draw a picture, serve. PORT=8000 DARKROOM_HOME=.darkroom PROMPT="…" ONCE=1
	@exec $(BIN)/darkroom up --port $(PORT) --home "$(DARKROOM_HOME)" $(if $(PROMPT),--prompt "$(PROMPT)") $(if $(ONCE),--once)

test: environment-dev ## Run every test, against a real Valkey and a real S3 server
	@exec $(BIN)/python -m pytest $(TEST_PROCESSES) $(ARGS)

check: environment-dev ## Lint, types, import rules, architecture tests; offline and deterministic
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/basedpyright
	$(BIN)/lint-imports
	$(BIN)/deptry .
	$(BIN)/vulture
	$(BIN)/python -m pytest -q tests/architecture

check-gateway: ## Install the gateway's extra alone and import all of it: no torch, nothing undeclared
	@rm -rf build/gateway && python3 -m venv build/gateway
	@build/gateway/bin/pip install -q --disable-pip-version-check -c constraints.txt '.[gateway]'
	@build/gateway/bin/python -P tests/architecture/gateway_alone.py

openapi: environment-dev ## Write openapi.yaml from the app
	@$(BIN)/python -m service.api.openapi > openapi.yaml.new && mv openapi.yaml.new openapi.yaml

lint-openapi: ## Lint openapi.yaml with Redocly, from the npm registry; needs Node.js
	@REDOCLY_TELEMETRY=off REDOCLY_SUPPRESS_UPDATE_NOTICE=true \
		npx --yes @redocly/cli@2.77.0 lint --config tests/architecture/redocly.yaml openapi.yaml

fuzz-api: environment-dev ## Hold a gateway to openapi.yaml by 5 000 generated calls and more, alone and in sequences
	@API_EXAMPLES=120 API_CASES=5000 exec $(BIN)/python -m pytest -q -s tests/integration/test_api_schemathesis.py

bench: environment-dev ## Measure what docs/performance.md reports
	$(BIN)/python -m benchmarks.latency
	$(BIN)/python -m benchmarks.rates
	$(BIN)/python -m benchmarks.queue_depth
	$(BIN)/python -m benchmarks.waiters
	$(BIN)/python -m benchmarks.fairness
	$(BIN)/python -m benchmarks.estimates
	$(BIN)/python -m benchmarks.memory
	$(BIN)/python -m benchmarks.boxed_model
	$(BIN)/python -m benchmarks.batching

train: environment-dev ## Train the model in the box anew, every stage; two to three hours on two cores
	@for stage in $(TRAINING_STAGES); do $(BIN)/python -m training $$stage || exit 1; done

gpu-bench: environment-dev ## Measure full-size models with random weights on this machine's GPU; offline
	$(BIN)/python -m benchmarks.gpu

clean: ## Remove caches and the environment; data in .darkroom and .training stays
	rm -rf .venv build dist *.egg-info .pytest_cache .ruff_cache .hypothesis .import_linter_cache .grimp_cache
	find service worker training tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +
