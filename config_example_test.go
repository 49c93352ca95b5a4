package vswitch_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"go.uber.org/zap"

	"github.com/seed-b14e907b/vswitch"
	"github.com/seed-b14e907b/vswitch/config"
	"github.com/seed-b14e907b/vswitch/config/configtest"
)

// TestConfigExample keeps config.toml true: every key is in it, with its
// default.
func TestConfigExample(t *testing.T) {
	if err := configtest.CheckExample("config.toml", vswitch.DefaultConfig, vswitch.Drivers(zap.NewNop()), vswitch.Filters()...); err != nil {
		t.Error(err)
	}
}

// TestDocumentedConfigs parses every TOML block of the documents.
func TestDocumentedConfigs(t *testing.T) {
	var files []string
	for _, pattern := range []string{"README.md", "docs/*.md", "*/README.md", "*/*/README.md"} {
		found, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		files = append(files, found...)
	}
	blocks := 0
	for _, name := range files {
		text, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		var block []string // nil outside
		for i, line := range strings.Split(string(text), "\n") {
			switch {
			case block == nil && strings.TrimSpace(line) == "```toml":
				block = make([]string, i+1, i+64) // empty lines, so that errors name the line of the document
			case block != nil && strings.TrimSpace(line) == "```":
				blocks++
				if _, err := config.Parse(name, []byte(strings.Join(block, "\n")), vswitch.Drivers(zap.NewNop()), vswitch.Filters()...); err != nil {
					t.Error(err)
				}
				block = nil
			case block != nil:
				block = append(block, line)
			}
		}
	}
	if blocks == 0 {
		t.Errorf("no block of TOML in %v", files)
	}
}
