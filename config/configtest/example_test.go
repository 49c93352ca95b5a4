package configtest_test

import (
	"strings"
	"testing"
	"time"

	"github.com/seed-b14e907b/vswitch/config/configtest"
	"github.com/seed-b14e907b/vswitch/ndiscore"
)

type options struct {
	Interface string        `toml:"interface"`
	Poll      time.Duration `toml:"poll"`
}

const example = `# An example.
[control]
#socket = ""       # path
mode = "0600"      # octal
#group = ""        # who # may
[log]
#level = "info"    # how much
#format = "console" # or json
#[filter.f]
#driver = "drop"    # required: which
#rate = 0           # how many
#[adapter.a]
#driver = "wire"    # required: which
#filters = ["f"]    # example: x
#interface = "eth0" # example: device
#poll = "300s"      # how often
#[adapter.b]
#driver = "wire"    # required: which
#[bundle.c]
#members = ["a", "b"] # required: x
#mode = "team"     # x
#failback = "always" # x
#balance = "active-backup" # x
#lag = false          # with hash: the far end is a static link aggregate
#hold = "1s"       # x
#up_delay = "0s"   # x
#down_delay = "0s" # x
#mac = ""          # x
#[bundle.c.health]
#carrier = true    # x
#probe = ""        # x
#target = ""       # x
#interval = "100ms" # x
#[bridge.d]
#ports = ["c"]     # required: x
#mac_age = "300s"  # x
#mac_limit = 8192  # x
#mac = ""          # x
#vlan = 0          # x
#snooping = true   # x
#loop_guard = true # x
#loop_hold = "30s" # x
#[bridge.d.port.c]
#access = 0        # x
#trunk = []        # x
#native = 0        # x
#mac_limit = 0     # x
#storm_broadcast = 0 # x
#storm_multicast = 0 # x
#storm_unknown = 0 # x
#[interface.e]
#on = "d"          # required: x
#addresses = ["192.0.2.1/24"] # example: x
#mtu = 0           # x
#masquerade = false # x
#masquerade6 = false # x
#[[route]]
#to = "default"    # required: x
#via = "192.0.2.2" # required: x
#interface = ""    # x
#metric = 0        # x
#[[forward]]
#interface = "e"   # required: x
#protocol = "tcp"  # required: x
#port = "80"       # required: x
#to = "192.0.2.3:80" # required: x
[nat]
#flows = 65536     # x
#tcp = "7440s"     # x
#tcp_transitory = "240s" # x
#udp = "30s"       # x
#udp_stream = "120s" # x
#icmp = "30s"      # x
[fault]
#allow = false     # x
#longest = "1h"    # x
`

func TestCheckExample(t *testing.T) {
	filters := []ndiscore.FilterDriver{{Name: "drop", NewOptions: func() any {
		return &struct {
			Rate int `toml:"rate"`
		}{}
	}}}
	drivers := []ndiscore.Driver{{Name: "wire", NewOptions: func() any { return &options{Poll: 5 * time.Minute} }}}
	for _, tt := range []struct{ name, old, new, want string }{
		{"right", "", "", ""},
		{"not the default", "mac_limit = 8192", "mac_limit = 8193", "ex:37: bridge.NAME.mac_limit = 8193: the default is 8192"},
		{"missing", "#poll = \"300s\"      # how often\n", "", "the key adapter.NAME.poll of driver wire is missing"},
		{"a filter's default", "rate = 0 ", "rate = 1 ", "filter.NAME.rate = 1: the default is 0"},
		{"a port's default", "access = 0 ", "access = 1 ", "does not look at VLANs"},
		{"no remark", "metric = 0        # x", "metric = 0", "ex:61: route.metric has no remark"},
		{"required", "# required: which", "# which", "filter.NAME.driver is required"},
		{"invalid", "# octal", "# octal\n#mod = 1", "control.mod: unknown key"},
		{"not the defaults", `#level = "info"`, `level = "debug"`, "does not equal the defaults"},
		{"default not marked", `# example: device`, `# device`, `adapter.NAME.interface = "eth0": the default is ""`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			err := configtest.CheckExample("ex", []byte(strings.Replace(example, tt.old, tt.new, 1)), drivers, filters...)
			switch {
			case tt.want == "" && err != nil:
				t.Error(err)
			case tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)):
				t.Errorf("got %v, want %q", err, tt.want)
			}
		})
	}
}
