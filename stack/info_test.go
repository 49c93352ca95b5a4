package stack

import (
	"bytes"
	"os"
	"strings"
	"testing"
)

// Everything that the router counts has its place in docs/operations.md.
func TestCountersDocumented(t *testing.T) {
	doc, err := os.ReadFile("../docs/operations.md")
	if err != nil {
		t.Fatal(err)
	}
	d := newBed(t, testOptions(), 1500, 1500)
	for name := range d.router.Stats() {
		parts := strings.Split(name, ".")
		if parts[0] == "punt" {
			parts[1] = "CLASS"
		}
		if parts[0] == "send" && len(parts) == 3 {
			parts[1] = "IFACE"
		}
		if !bytes.Contains(doc, []byte("`"+strings.Join(parts, ".")+"`")) {
			t.Errorf("docs/operations.md says nothing of %s", name)
		}
	}
}
