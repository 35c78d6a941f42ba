# The two commands: `make demo` runs the main job, `make check` runs the tests. Both set the machine up first
# (Debian 12, Ubuntu 24.04): what is missing is installed with apt.

BUILD ?= build
MESON_OPTIONS ?=

.PHONY: build demo check setup clean

build: setup
	@test -f $(BUILD)/build.ninja || meson setup $(BUILD) $(MESON_OPTIONS)
	@ninja -C $(BUILD)

demo: build
	@$(BUILD)/tools/cistern demo

check: build
	@meson test -C $(BUILD) --no-rebuild --print-errorlogs

setup:
	@scripts/setup

clean:
	rm -rf $(BUILD)
