.DEFAULT_GOAL := help
.PHONY: help build check test race root fuzz bench bench-compare golden demo

help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 15

build: ## build bin/vswitch
	go build -o bin/vswitch ./cmd/vswitch

check: ## gofmt, vet, staticcheck
	@test -z "$$(gofmt -l $$(git ls-files '*.go'))" || { gofmt -l $$(git ls-files '*.go'); exit 1; }
	go vet ./...
	go tool staticcheck ./...

test: ## all tests, no root needed
	go test ./...

race: ## all tests with the race detector
	go test -race ./...

fuzz: ## every fuzz target for FUZZTIME (30s) each
	@for p in $$(go list ./...); do for f in $$(go test -list '^Fuzz' $$p | grep ^Fuzz); do \
	  echo "$$p $$f"; go test -run '^$$' -fuzz "^$$f$$" -fuzztime $${FUZZTIME:-30s} $$p || exit 1; done; done

bench: ## side by side with the kernel, interleaved, as ratios
	go run ./bench

bench-compare: ## the same, beside the build of another commit: REF=...
	@test -n "$(REF)" || { echo "which commit? make bench-compare REF=..."; exit 1; }
	@d=$$(mktemp -d) && trap 'rm -rf "$$d"' EXIT && mkdir "$$d/tree" && git archive "$(REF)" | tar -x -C "$$d/tree" && \
	  (cd "$$d/tree" && go build -o "$$d/vswitch" ./cmd/vswitch) && go run ./bench -against "$$d/vswitch" $(BENCH)

golden: ## renew the golden traces; read the diff before you commit it
	go test ./ndiscore -run TestGolden -update
	git diff --stat -- ndiscore/testdata

demo: ## the main job: a real failover in private namespaces
	go run ./cmd/vswitch demo
