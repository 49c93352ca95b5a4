package config_test

import (
	"fmt"

	"github.com/seed-b14e907b/vswitch/config"
	"github.com/seed-b14e907b/vswitch/ndiscore"
)

// tapOptions are what a driver wants to be told.
type tapOptions struct {
	Queues int `toml:"queues" range:"1..16"`
}

func drivers() []ndiscore.Driver {
	return []ndiscore.Driver{{Name: "tap", NewOptions: func() any { return &tapOptions{Queues: 1} }}}
}

func ExampleParse() {
	_, err := config.Parse("bad.toml", []byte(`
[adapter.lan0]
driver = "tap"
queuse = 4
[adapter.lan1]
driver = "tap"
[bridge.lan]
ports = ["lan0", "lan2"]
mac_age = 300
`), drivers())
	fmt.Println(err)
	// Output:
	// bad.toml:4:1: adapter.lan0.queuse: unknown key for driver "tap" (did you mean queues?)
	// bad.toml:8:18: bridge.lan.ports[1]: there is no adapter or bundle "lan2" (did you mean "lan0"?)
	// bad.toml:9:1: bridge.lan.mac_age: want a duration such as "300s", found the integer 300 (did you mean "300s"?)
}

func ExamplePlan() {
	c, err := config.Parse("good.toml", []byte(`
[adapter.lan0]
driver = "tap"
[adapter.lan1]
driver = "tap"
[bridge.lan]
ports = ["lan0", "lan1"]
[interface.lan]
on = "lan"
addresses = ["10.0.0.1/24"]
`), drivers())
	if err != nil {
		fmt.Println(err)
		return
	}
	more, err := config.Parse("more.toml", []byte(`
[adapter.lan0]
driver = "tap"
queues = 4
[adapter.lan1]
driver = "tap"
[adapter.lan2]
driver = "tap"
[bridge.lan]
ports = ["lan0", "lan1", "lan2"]
[interface.lan]
on = "lan"
addresses = ["10.0.0.1/24"]
`), drivers())
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Print(config.Plan(nil, c), "\n", config.Plan(c, more))
	// Output:
	// add adapter lan0
	// add adapter lan1
	// add bridge lan
	// add interface lan
	//
	// restart adapter lan0: queues 1 -> 4
	//     loses traffic: port lan0 of bridge lan
	// add adapter lan2
	// add port lan2 on lan
}
