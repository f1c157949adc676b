# Copyright The vk-firkin Authors
# SPDX-License-Identifier: Apache-2.0

SHELL := /usr/bin/env bash -euo pipefail -c
.DEFAULT_GOAL := help

BIN  := bin
KIT  := $(BIN)/guest
GO   ?= go
# One setting for every build in this repository: another one builds the whole
# dependency tree a second time. The agent alone needs cgo (see hack/guestkit).
export CGO_ENABLED ?= 0
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
LDFLAGS := -X main.version=$(VERSION)
# A variable, so that a test can read the recipes of the other host.
HOST_OS := $(shell uname -s)
# Who signs the binary on a Mac. "-" is an ad hoc signature: the entitlement for
# Virtualization.framework needs no more.
CODESIGN_IDENTITY ?= -

##@ General

.PHONY: help
help: ## Show this help.
	@awk 'BEGIN {FS = ":.*##"; printf "\nUsage:\n  make \033[36m<target>\033[0m\n"} /^[a-zA-Z_0-9-]+:.*?##/ { printf "  \033[36m%-18s\033[0m %s\n", $$1, $$2 } /^##@/ { printf "\n\033[1m%s\033[0m\n", substr($$0, 5) }' $(MAKEFILE_LIST)

##@ Try it

.PHONY: demo
demo: ## Install what is missing, build, start a cluster and a node, run pods, measure. KEEP=1 leaves it up.
	@KEEP=$(KEEP) hack/demo.sh

.PHONY: demo-down
demo-down: ## End what `make demo KEEP=1` left up.
	@hack/demo.sh down

##@ Build

.PHONY: build
build: ## Build bin/vk-firkin for this host; on a Mac, sign it (CODESIGN_IDENTITY, ad hoc by default).
ifeq ($(HOST_OS),Darwin)
	CGO_ENABLED=1 $(GO) build -ldflags '$(LDFLAGS)' -o $(BIN)/vk-firkin ./cmd/vk-firkin
	codesign --force --sign "$(CODESIGN_IDENTITY)" --entitlements hack/vz.entitlements $(BIN)/vk-firkin
else
	$(GO) build -ldflags '$(LDFLAGS)' -o $(BIN)/vk-firkin ./cmd/vk-firkin
endif

# For whom the controller's image is, and what it is called; with a registry in front, PUSH=1 pushes it there.
ARCH  ?= amd64 arm64
IMAGE ?= vk-firkin:$(VERSION)
.PHONY: image
image: ## The controller's image without Docker: IMAGE=REGISTRY/NAME:TAG, ARCH="amd64 arm64", PUSH=1. The archive is bin/image/vk-firkin.tar.
	for arch in $(ARCH); do \
		CGO_ENABLED=0 GOOS=linux GOARCH=$$arch $(GO) build -trimpath -buildvcs=false -ldflags '-s -w $(LDFLAGS)' -o $(BIN)/image/$$arch/vk-firkin ./cmd/vk-firkin; \
	done
	$(GO) run ./hack/controllerimage --name $(IMAGE) --version $(VERSION) --archive $(BIN)/image/vk-firkin.tar $(if $(PUSH),--push) \
		$(foreach arch,$(ARCH),--binary $(arch)=$(BIN)/image/$(arch)/vk-firkin)

.PHONY: guest
guest: ## Build the guest kits for amd64 and arm64 (kernel, initramfs with the agent).
	@hack/prerequisites.sh guest
	$(GO) run ./hack/guestkit --arch amd64 --out $(KIT)/amd64
	$(GO) run ./hack/guestkit --arch arm64 --out $(KIT)/arm64

.PHONY: controlplane
controlplane: ## Build the embedded control plane (about 8 minutes the first time).
	@hack/controlplane/build.sh

.PHONY: helm
helm: ## Build bin/helm, its version pinned in hack/helm (a minute or two the first time).
	cd hack/helm && CGO_ENABLED=0 GOWORK=off $(GO) build -o ../../$(BIN)/helm helm.sh/helm/v4/cmd/helm

##@ Test

.PHONY: test
test: ## Everything: unit, conformance on fake and QEMU, guest, e2e. Needs Go and the right to install Debian packages.
	@hack/prerequisites.sh test
# A KUBECONFIG in the environment is a cluster that was meant for something else: test-e2e alone takes it.
	@$(MAKE) --no-print-directory KUBECONFIG= test-unit shellcheck verify-darwin typecheck-darwin guest test-machines controlplane test-controlplane test-e2e

.PHONY: test-unit
test-unit: ## Unit tests: no root, no network, no QEMU, two to three minutes on 2 cores.
	$(GO) test ./...

.PHONY: test-race
test-race: ## Unit tests under the race detector (needs cgo).
	CGO_ENABLED=1 $(GO) test -race ./...

.PHONY: test-machines
test-machines: ## Tests on real machines: both guest kits, the agent, the QEMU driver's conformance.
	FIRKIN_KIT_DIR=$(CURDIR)/$(KIT) $(GO) test -tags machines -count 1 -p 1 -timeout 25m $$($(GO) run ./hack/taggedpackages machines)

.PHONY: test-controlplane
test-controlplane: ## Tests of the embedded control plane itself.
	cd hack/controlplane && CGO_ENABLED=0 $(GO) test -trimpath -tags controlplane -count 1 -timeout 10m ./cluster

# The product, but for what is below the seam to Virtualization.framework: a simulator.
.PHONY: build-simulated
build-simulated:
	CGO_ENABLED=0 $(GO) build -tags vzsim -ldflags '$(LDFLAGS)' -o $(BIN)/vk-firkin-vzsim ./cmd/vk-firkin

.PHONY: test-e2e
test-e2e: build build-simulated helm ## User stories on a real control plane and real machines. KUBECONFIG chooses another cluster.
	FIRKIN_KIT_DIR=$(CURDIR)/$(KIT) FIRKIN_BIN_DIR=$(CURDIR)/$(BIN) FIRKIN_CONTROLPLANE=$(CURDIR)/hack/controlplane/bin/controlplane \
		CHAOS_SEED=$${CHAOS_SEED:-1078} $(GO) test -tags e2e -count 1 -p 1 -v -timeout 60m ./test/e2e/... ./test/chaos

# CHAOS_SEED, in the environment, repeats the decisions of a run that printed it.
.PHONY: chaos
chaos: export CHAOS_TIME ?= 10m
chaos: build guest controlplane ## Kill, stop, fill and damage what a node has at random for CHAOS_TIME (10m) while pods and pools change, then check every invariant. Needs root.
	@hack/prerequisites.sh test
	FIRKIN_KIT_DIR=$(CURDIR)/$(KIT) FIRKIN_BIN_DIR=$(CURDIR)/$(BIN) FIRKIN_CONTROLPLANE=$(CURDIR)/hack/controlplane/bin/controlplane \
		$(GO) test -tags e2e -count 1 -v -timeout 2h -run TestChaos ./test/chaos

.PHONY: churn
churn: build build-simulated guest controlplane ## 200 pods deleted at random moments of their lives on real machines. FIRKIN_SEED repeats a run.
	FIRKIN_KIT_DIR=$(CURDIR)/$(KIT) FIRKIN_BIN_DIR=$(CURDIR)/$(BIN) FIRKIN_CONTROLPLANE=$(CURDIR)/hack/controlplane/bin/controlplane FIRKIN_DELETES=200 \
		$(GO) test -tags e2e -count 1 -v -timeout 30m -run TestDeletedInAnyPhase ./test/e2e

.PHONY: e2e-kind
e2e-kind: ## The stories in a cluster of kind with this host as its node: a signed node over VZ on a Mac, QEMU on Linux. Needs Docker. KEEP=1, RUN=regexp.
	@hack/e2e-kind.sh

.PHONY: kind
kind: ## Build bin/kind, its version pinned in hack/kind.
	cd hack/kind && CGO_ENABLED=0 GOWORK=off $(GO) build -o ../../$(BIN)/kind sigs.k8s.io/kind

.PHONY: test-top
test-top: build build-simulated guest controlplane ## The real metrics-server scrapes a node for `kubectl top`: a build of some minutes the first time.
	cd hack/metricsserver && CGO_ENABLED=0 GOWORK=off $(GO) build -trimpath -o bin/metrics-server sigs.k8s.io/metrics-server/cmd/metrics-server
	FIRKIN_KIT_DIR=$(CURDIR)/$(KIT) FIRKIN_BIN_DIR=$(CURDIR)/$(BIN) FIRKIN_CONTROLPLANE=$(CURDIR)/hack/controlplane/bin/controlplane \
		FIRKIN_METRICS_SERVER=$(CURDIR)/hack/metricsserver/bin/metrics-server $(GO) test -tags e2e -count 1 -v -timeout 10m -run TestTop ./test/e2e

.PHONY: test-vz
test-vz: ## On a Mac only, never run yet: conformance over Virtualization.framework, signed, and the user stories.
	@hack/test-vz.sh

# FOCUS, in the environment, is read by the tool: make would expand a $ in it.
# CONFORMANCE_FLAGS are further flags (go run ./hack/conformance -h).
.PHONY: conformance-sig-node
conformance-sig-node: build guest controlplane ## Kubernetes' own [sig-node] specs on a node of this host: FOCUS=regexp for some. Takes an hour or more.
	@hack/prerequisites.sh test
	@hack/conformance/e2e/build.sh
	$(GO) run ./hack/conformance $(CONFORMANCE_FLAGS)

.PHONY: bench
bench: guest bench-supply bench-pods bench-rest bench-checkout bench-adopt ## All benchmarks; each fails when its target is missed. Wants a quiet machine.
	$(GO) run ./hack/bench --kit $(KIT)/amd64

.PHONY: bench-supply
bench-supply: ## What the supply itself costs: an acquire from a warm entry, a plan of 1,000 pools over 10,000 entries.
	$(GO) test -run '^$$' -bench 'AcquireWarm|Plan' ./warmpool

.PHONY: bench-checkout
bench-checkout: guest ## Checkouts of a ready entry on real machines, with and without a refill of another template.
	$(GO) run ./hack/checkoutbench --kit $(KIT)/amd64

.PHONY: bench-pods
bench-pods: build guest controlplane ## Pods of one template, bound to first output: warm checkout, restore and cold boot.
	$(GO) run ./hack/podbench

.PHONY: bench-rest
bench-rest: build guest controlplane ## What a node with 20 idle pods costs, and how old the status of a pod is.
	$(GO) run ./hack/podbench --idle 20

.PHONY: bench-adopt
bench-adopt: build guest controlplane ## A node process killed under 20 pods: the next one has their machines in under 2 s, and no pod leaves Ready.
	$(GO) run ./hack/podbench --adopt 20 --samples 3

FUZZTIME ?= 30s
.PHONY: fuzz
fuzz: ## Run every fuzz target for FUZZTIME (default 30s).
	@hack/fuzz.sh $(FUZZTIME)

##@ Verify

.PHONY: chart-lint
chart-lint: helm ## Lint the Helm chart, and check what it renders for each release of Kubernetes that it supports. Needs no cluster.
	FIRKIN_BIN_DIR=$(CURDIR)/$(BIN) $(GO) test -count 1 ./charts
	FIRKIN_BIN_DIR=$(CURDIR)/$(BIN) $(GO) test -tags e2e -count 1 -skip TestRelease ./test/e2e/chart

.PHONY: test-chart
test-chart: build helm controlplane guest ## Install, use, upgrade, roll back and uninstall the chart on the embedded control plane, its controller in a machine too.
	FIRKIN_KIT_DIR=$(CURDIR)/$(KIT) FIRKIN_BIN_DIR=$(CURDIR)/$(BIN) FIRKIN_CONTROLPLANE=$(CURDIR)/hack/controlplane/bin/controlplane $(GO) test -tags e2e -count 1 -v -timeout 10m ./test/e2e/chart

.PHONY: fmt
fmt: ## Format the code.
	gofmt -l -w $$(git ls-files '*.go')

.PHONY: lint
lint: ## Run golangci-lint, its version pinned in hack/tools.
	$(GO) tool -modfile=hack/tools/go.mod golangci-lint run ./...

.PHONY: shellcheck
shellcheck: ## Lint every shell script; installs shellcheck on Debian.
	@hack/prerequisites.sh shell
	shellcheck $$(git ls-files '*.sh' .ci/run)

.PHONY: generate
generate: generate-crds generate-reference ## Generate the CRDs, the reference pages and the guest protocol's Go code (needs protoc).
	hack/generate.sh

.PHONY: generate-crds
generate-crds: ## Generate the CRDs and their deep copies, controller-gen pinned in hack/tools.
	hack/generate-crds.sh

.PHONY: generate-reference
generate-reference: ## Generate docs/reference: commands and flags, fields of resources, metrics.
	mkdir -p docs/reference && touch docs/reference/{commands,metrics,resources}.md
	$(GO) test -count 1 -run TestReference ./cmd/vk-firkin ./crds -update

.PHONY: verify
verify: verify-darwin typecheck-darwin verify-generate licences lint shellcheck chart-lint ## Check that generated code is current, darwin builds, linters are silent.

.PHONY: verify-darwin
verify-darwin: ## Build and vet everything for the product's platform, darwin/arm64, but for what needs cgo.
	CGO_ENABLED=0 GOOS=darwin GOARCH=arm64 $(GO) build ./...
# go vet reads what its dependencies export, so it builds them. The file that calls
# Virtualization.framework depends on a package in cgo, which only Apple's compiler
# builds: that file is checked by typecheck-darwin, and vetted on a Mac.
	CGO_ENABLED=0 GOOS=darwin GOARCH=arm64 $(GO) vet ./...

.PHONY: typecheck-darwin
typecheck-darwin: ## Type-check everything, tests too, for darwin/arm64 with cgo, without Apple's compiler.
	$(GO) run ./hack/typecheckdarwin -tags e2e,machines ./...

.PHONY: verify-generate
verify-generate: generate ## Fail when generated code is stale.
	git diff --exit-code -- '*.pb.go' '*.connect.go' 'crds/*.yaml' 'charts/vk-firkin/files/crds/*.yaml' '*/zz_generated.deepcopy.go' docs/reference

.PHONY: licences
licences: ## Fail when something is linked whose licence nobody has agreed to. Needs no network.
	$(GO) run ./hack/licences ./cmd/vk-firkin ./cmd/firkin-agent

# Not part of verify: it asks vuln.go.dev, and what is known there changes by the day.
.PHONY: vulncheck
vulncheck: ## Look for known vulnerabilities in what is called (needs the network).
	$(GO) tool -modfile=hack/tools/go.mod govulncheck ./cmd/...

##@ Release

.PHONY: release
release: $(if $(filter Linux,$(HOST_OS)),guest) ## Archives with guest kits and licences, bills of materials, checksums, all checked, in bin/release. On a Mac, which makes the Mac's, with kits from Debian.
	VERSION=$(VERSION) KIT=$(KIT) CODESIGN_IDENTITY="$(CODESIGN_IDENTITY)" hack/release/release.sh

.PHONY: clean
clean: ## Remove what was built.
	rm -rf $(BIN) hack/controlplane/bin hack/conformance/e2e/bin hack/metricsserver/bin .work
