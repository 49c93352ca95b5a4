package stack

import (
	"net/netip"
	"strings"
	"testing"
)

func TestValidate(t *testing.T) {
	for _, tc := range []struct {
		name   string
		change func(o *Options)
		want   string // "" for none
	}{
		{"good", func(*Options) {}, ""},
		{"no name", func(o *Options) { o.Interfaces[0].Name = "" }, "has no name"},
		{"same name", func(o *Options) { o.Interfaces[1].Name = "lan" }, "used twice"},
		{"nowhere", func(o *Options) { o.Interfaces[1].On = "" }, "on: missing"},
		{"same place", func(o *Options) { o.Interfaces[1].On = "a" }, "interface lan is there already"},
		{"mtu", func(o *Options) { o.Interfaces[1].MTU = 67 }, "not within 68..65535"},
		{"mtu and IPv6", func(o *Options) { o.Interfaces[1].MTU = 1279 }, "IPv6 needs an mtu of at least 1280"},
		{"network address", func(o *Options) { o.Interfaces[1].Addresses = prefixes("10.2.0.0/24") }, "broadcast address"},
		{"broadcast address", func(o *Options) { o.Interfaces[1].Addresses = prefixes("10.2.0.255/24") }, "broadcast address"},
		{"point to point", func(o *Options) {
			o.Interfaces[0].Addresses = append(o.Interfaces[0].Addresses, prefixes("10.3.0.0/31")...)
		}, ""},
		{"multicast", func(o *Options) { o.Interfaces[1].Addresses = prefixes("ff02::1/64") }, "no station may have it"},
		{"twice", func(o *Options) { o.Interfaces[0].Addresses = prefixes("10.2.0.1/24") }, "has it already"},
		{"link-local twice", func(o *Options) {
			for i := range o.Interfaces {
				o.Interfaces[i].Addresses = append(o.Interfaces[i].Addresses, prefixes("fe80::1/64")...)
			}
		}, ""},
		{"host bits", func(o *Options) { o.Routes[0].To = netip.MustParsePrefix("10.9.0.1/16") }, "did you mean 10.9.0.0/16"},
		{"no way", func(o *Options) { o.Routes[0] = Route{To: netip.MustParsePrefix("10.9.0.0/16")} }, "needs via or interface"},
		{"far via", func(o *Options) { o.Routes[0].Via = netip.MustParseAddr("10.8.0.1") }, "in no interface's network"},
		{"via elsewhere", func(o *Options) { o.Routes[0].Interface = "lan" }, "in no network of interface lan"},
		{"unknown interface", func(o *Options) { o.Routes[0].Interface = "dmz" }, "no interface dmz"},
		{"own via", func(o *Options) { o.Routes[0].Via = netip.MustParseAddr("10.2.0.1") }, "the router's own"},
		{"other version", func(o *Options) { o.Routes[0].Via = netip.MustParseAddr("fd02::9") }, "other IP version"},
		{"metric", func(o *Options) { o.Routes[0].Metric = -1 }, "negative"},
		{"link-local via", func(o *Options) {
			o.Routes[0] = Route{To: netip.MustParsePrefix("::/0"), Via: netip.MustParseAddr("fe80::9"), Interface: "wan"}
		}, ""},
		{"link-local via of nobody", func(o *Options) {
			o.Routes[0] = Route{To: netip.MustParsePrefix("::/0"), Via: netip.MustParseAddr("fe80::9")}
		}, "in no interface's network"},
	} {
		o := testOptions()
		tc.change(&o)
		_, err := New(o)
		switch {
		case tc.want == "" && err != nil:
			t.Errorf("%s: %v", tc.name, err)
		case tc.want != "" && (err == nil || !strings.Contains(err.Error(), tc.want)):
			t.Errorf("%s: %v, want %q", tc.name, err, tc.want)
		}
	}
}
