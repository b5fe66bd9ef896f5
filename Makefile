# make test is the one to know. What needs a program says in one line how to get it.

GO ?= go
FUZZTIME ?= 30s
KILLS ?= 200
FAILOVERS ?= 20
ROUNDS ?= 3
PLATFORMS = linux/amd64 linux/arm64 darwin/arm64 windows/amd64
MODULES = relay http.handlers.relay_publish http.handlers.relay_status http.handlers.relay_ready admin.api.relay layer4.handlers.relay relay.brokers.embedded relay.brokers.redis

.PHONY: help
help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | sort | expand -t 16

.PHONY: build
build: ## build bin/caddy
	$(GO) build -o bin/caddy ./cmd/caddy

.PHONY: test
test: deps ## run all tests, with the race detector, and count them
	@GO="$(GO)" ./scripts/test

.PHONY: deps
deps: ## find or install what the tests need: a C compiler, redis-server, Node.js packages
	@./scripts/deps

.PHONY: lint
lint: ## gofmt, go vet and golangci-lint
	@files=$$(gofmt -l .) && test -z "$$files" || { echo "gofmt would change:" $$files; exit 1; }
	$(GO) vet ./...
	GOOS=windows $(GO) vet ./...
	$(GO) -C tools/lint build -o ../../bin/golangci-lint github.com/golangci/golangci-lint/v2/cmd/golangci-lint
	bin/golangci-lint run ./...

.PHONY: fuzz
fuzz: ## run each fuzz target for FUZZTIME (30s)
	@GO="$(GO)" FUZZTIME=$(FUZZTIME) ./scripts/fuzz

.PHONY: fuzz-short
fuzz-short: ## run each fuzz target for 5s
	@GO="$(GO)" FUZZTIME=5s ./scripts/fuzz

.PHONY: crash
crash: deps ## kill the relay, redis-server and clients KILLS (200) times each, and check that nothing is lost
	CRASH_KILLS=$(KILLS) $(GO) test -v -timeout 120m -count=1 -run 'TestI2_RelayKilled|TestI2_RedisKilled|TestI5_ClientsVanish' ./integration

.PHONY: chaos
chaos: deps ## harm three nodes and each form of Redis in every way, ROUNDS (3) times; and FAILOVERS (20) failovers
	CHAOS_ROUNDS=$(ROUNDS) $(GO) test -race -v -timeout 120m -count=1 ./integration/cluster
	FAILOVERS=$(FAILOVERS) $(GO) test -v -timeout 60m -count=1 -run 'TestI2_SentinelFailovers' ./integration

.PHONY: model
model: ## look at all that can happen to the ownership of a mailbox, within larger bounds: some minutes, and 10 GB
	MODEL=long $(GO) test -v -timeout 30m -count=1 ./internal/model

.PHONY: properties
properties: deps ## compare the stores with a plain model, 2000 sequences of calls each
	$(GO) test -v -timeout 60m -count=1 -run 'TestProperties$$' ./broker/boltbroker ./broker/redisbroker -rapid.checks=2000

.PHONY: golden
golden: ## write the golden files of the configuration anew; look at the difference
	$(GO) test ./integration -run TestAdaptGolden -update

.PHONY: cross
cross: ## build cmd/caddy for every platform that is released
	@for p in $(PLATFORMS); do \
		echo "build $$p"; \
		CGO_ENABLED=0 GOOS=$${p%/*} GOARCH=$${p#*/} $(GO) build -o /dev/null ./cmd/caddy || exit 1; \
	done

.PHONY: xcaddy
xcaddy: ## build bin/caddy-xcaddy as users of xcaddy do, and check its modules
	$(GO) -C tools/xcaddy build -o ../../bin/xcaddy github.com/caddyserver/xcaddy/cmd/xcaddy
	bin/xcaddy build v2.11.9 --output bin/caddy-xcaddy \
		--with github.com/mholt/caddy-l4@v0.1.2 --with github.com/caddyrelay/relay@v0.0.0=.
	@for m in $(MODULES); do \
		bin/caddy-xcaddy list-modules | grep -qx "$$m" || { echo "the binary lacks the module $$m"; exit 1; }; \
		echo "has $$m"; \
	done

.PHONY: check
check: lint test fuzz-short cross xcaddy ## all that CI runs

.PHONY: clean
clean: ## remove what was built
	rm -rf bin
