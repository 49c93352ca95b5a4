package netdev

import (
	"os"

	"github.com/seed-b14e907b/vswitch/ndiscore"
)

// machineID makes addresses of different machines differ (machine-id(5)).
const machineID = "/etc/machine-id"

// StationMAC is the address of the switch's end of a link that has none of its
// own: locally administered, and the same at every start for the same adapter
// name on the same machine.
func StationMAC(name string) ndiscore.MAC {
	// Without the file the name alone decides, which is as stable.
	id, _ := os.ReadFile(machineID)
	return ndiscore.LocalMAC("vswitch station", string(id), name)
}
