package netdev

import (
	"crypto/sha256"
	"os"

	"github.com/seed-b14e907b/vswitch/ndiscore"
)

// machineID makes addresses of different machines differ (machine-id(5)).
const machineID = "/etc/machine-id"

// StationMAC is the address of the switch's end of a link that has none of its
// own: locally administered, and the same at every start for the same adapter
// name on the same machine.
func StationMAC(name string) ndiscore.MAC {
	h := sha256.New()
	// Without the file the name alone decides, which is as stable.
	id, _ := os.ReadFile(machineID)
	h.Write(id)
	h.Write([]byte("vswitch station\x00" + name))
	m := ndiscore.MAC(h.Sum(nil)[:6])
	m[0] = m[0]&^1 | 2
	return m
}
