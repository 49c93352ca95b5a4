package vswitch

import (
	"go.uber.org/zap"

	"github.com/seed-b14e907b/vswitch/filters/fault"
	"github.com/seed-b14e907b/vswitch/miniports/afpacket"
	"github.com/seed-b14e907b/vswitch/miniports/tap"
	"github.com/seed-b14e907b/vswitch/ndiscore"
)

// Drivers is the list of miniport drivers that the switch knows. A new kind of
// device is one folder under miniports and one line here.
func Drivers(log *zap.Logger) []ndiscore.Driver {
	return []ndiscore.Driver{
		tap.Driver(log.Named("tap")),
		afpacket.Driver(log.Named("afpacket")),
	}
}

// Filters is the list of filter drivers that the switch knows: one folder under
// filters and one line here for each.
func Filters() []ndiscore.FilterDriver {
	return []ndiscore.FilterDriver{fault.FilterDriver()}
}
