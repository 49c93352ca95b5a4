package vswitch_test

import (
	"encoding/json"
	"errors"
	"io"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

const modulePath = "github.com/seed-b14e907b/vswitch"

// row says what a package may import. Tests are free.
type row struct {
	pkg  string   // a name that ends in /... stands for the packages below it
	std  bool     // nothing else but the standard library
	uses []string // packages of this module
}

// rows say who may import whom (docs/architecture.md). The first that matches
// holds.
var rows = []row{
	{pkg: "ndiscore", std: true},
	{pkg: "ndiscore/ndistest", std: true, uses: []string{"ndiscore"}},
	{pkg: "ndiscore/bridge", std: true, uses: []string{"ndiscore"}},
	{pkg: "policy", std: true, uses: []string{"ndiscore"}},
	{pkg: "health", uses: []string{"ndiscore", "policy"}},
	{pkg: "miniports/netdev", uses: []string{"ndiscore"}},
	{pkg: "miniports/netdev/netdevtest", uses: []string{"ndiscore"}},
	{pkg: "miniports/...", uses: []string{"ndiscore", "miniports/netdev"}},
	{pkg: "filters/...", uses: []string{"ndiscore"}},
	{pkg: "stack", uses: []string{"ndiscore", "stack/..."}},
	{pkg: "stack/...", uses: []string{"ndiscore", "stack/..."}},
	{pkg: "config", uses: []string{"ndiscore"}},
	{pkg: "config/configtest", uses: []string{"ndiscore", "config"}},
	{pkg: "control", uses: []string{"ndiscore", "ndiscore/bridge", "stack"}},
	{pkg: "", uses: []string{
		"ndiscore", "ndiscore/bridge", "policy", "health", "miniports/...", "filters/...", "stack", "config", "control",
	}},
	{pkg: "lab", uses: []string{"", "ndiscore", "config", "control", "filters/fault"}},
	{pkg: "bench", uses: []string{"", "lab", "ndiscore", "config"}},
	{pkg: "cmd/vswitch", uses: []string{"", "lab", "ndiscore", "config", "control"}},
}

// matches reports whether a package of this module is meant by name.
func matches(name, pkg string) bool {
	if dir, ok := strings.CutSuffix(name, "/..."); ok {
		return strings.HasPrefix(pkg, dir+"/")
	}
	return name == pkg
}

// TestImports holds every package's imports against its row. A package without
// one has not been thought about.
func TestImports(t *testing.T) {
	out, err := exec.Command("go", "list", "-e", "-json=ImportPath,Imports", "./...").Output()
	if err != nil {
		var exit *exec.ExitError
		if errors.As(err, &exit) {
			t.Fatalf("go list: %v\n%s", err, exit.Stderr)
		}
		t.Fatalf("go list: %v", err)
	}
	seen := 0
	for d := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p struct {
			ImportPath string
			Imports    []string
		}
		if err := d.Decode(&p); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		seen++
		checkImports(t, inModule(p.ImportPath), p.Imports)
	}
	if seen < 5 {
		t.Errorf("only %d packages were looked at", seen)
	}
}

// inModule is the path inside this module, "" for its root.
func inModule(path string) string {
	return strings.TrimPrefix(strings.TrimPrefix(path, modulePath), "/")
}

// checkImports holds one package against its row.
func checkImports(t *testing.T, pkg string, imports []string) {
	i := slices.IndexFunc(rows, func(r row) bool { return matches(r.pkg, pkg) })
	if i < 0 {
		t.Errorf("package %q has no row in deps_test.go: decide what it may import", pkg)
		return
	}
	r := rows[i]
	for _, path := range imports {
		if path != modulePath && !strings.HasPrefix(path, modulePath+"/") {
			if first, _, _ := strings.Cut(path, "/"); r.std && (strings.Contains(first, ".") || path == "C") {
				t.Errorf("%s imports %s: the standard library only", pkg, path)
			}
			continue
		}
		dep := inModule(path)
		if !slices.ContainsFunc(r.uses, func(u string) bool { return matches(u, dep) }) {
			t.Errorf("%s imports %s: it may import %q", pkg, dep, r.uses)
		}
	}
}
