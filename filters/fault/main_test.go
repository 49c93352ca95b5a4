package fault_test

import (
	"testing"

	"github.com/seed-b14e907b/vswitch/lab"
)

func TestMain(m *testing.M) { lab.Main(m) }
