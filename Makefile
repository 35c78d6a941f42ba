# The two commands: `make demo` runs the main job, `make check` runs the tests. Both set the machine up first
# (Debian 12, Ubuntu 24.04): what is missing is installed with apt.

BUILD ?= build
MESON_OPTIONS ?=

.PHONY: build demo check gpu fault setup clean

build: setup
	@test -f $(BUILD)/build.ninja || meson setup $(BUILD) $(MESON_OPTIONS)
	@ninja -C $(BUILD)

demo: build
	@$(BUILD)/tools/cistern demo

check: build
	@meson test -C $(BUILD) --no-rebuild --print-errorlogs

# All that wants a GPU: tests, compute-sanitizer, bench; without one it says why not.
gpu: build
	@scripts/gpu-suite $(BUILD)

# The long form of the fault suite: some 40 minutes.
fault: build
	@export CISTERND=$(BUILD)/runtime/daemon/cisternd; set -e; \
	$(BUILD)/tests/fault/test-faulty-disk 1000; \
	$(BUILD)/tests/fault/test-power-cut 60; \
	$(BUILD)/tests/fault/test-kill daemon 1000; \
	$(BUILD)/tests/fault/test-kill clients 1000; \
	$(BUILD)/tests/fault/test-kill crowd 24 600

setup:
	@scripts/setup

clean:
	rm -rf $(BUILD)
