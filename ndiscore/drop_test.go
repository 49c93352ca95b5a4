package ndiscore

import (
	"os"
	"strings"
	"testing"
)

// Every reason has a name of its own, and its line in docs/operations.md.
func TestDropReasonsDocumented(t *testing.T) {
	doc, err := os.ReadFile("../docs/operations.md")
	if err != nil {
		t.Fatal(err)
	}
	seen := map[string]bool{}
	for _, r := range DropReasons() {
		name := r.String()
		if name == "" || name == "invalid" || seen[name] {
			t.Errorf("reason %d has the name %q", r, name)
		}
		seen[name] = true
		if !strings.Contains(string(doc), "\n| `"+name+"` |") {
			t.Errorf("docs/operations.md has no line for %s", name)
		}
	}
}
