package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"github.com/urfave/cli/v2"

	"github.com/seed-b14e907b/vswitch/control"
	"github.com/seed-b14e907b/vswitch/ndiscore"
)

func eventsCommand() *cli.Command {
	return &cli.Command{
		Name: "events", Usage: "what happened, to whom, and why",
		Description: "With --follow and --json there is one event per line.\n\n" + example("vswitch events --follow", "vswitch events --json --after 120"),
		Flags: []cli.Flag{
			jsonFlag(),
			&cli.BoolFlag{Name: "follow", Usage: "go on with those to come, until ^C or the switch stops"},
			&cli.Uint64Flag{Name: "after", Usage: "only events after number `N`"},
		},
		Action: func(c *cli.Context) error {
			if _, err := arguments(c); err != nil {
				return err
			}
			sw := control.NewClient(c.String("socket"))
			defer sw.Close()
			if c.Bool("follow") {
				return follow(c, sw)
			}
			page, err := sw.Events(c.Context, c.Uint64("after"))
			if err != nil {
				return err
			}
			if c.Bool("json") {
				return printJSON(c.App.Writer, page)
			}
			warnLost(c.App.ErrWriter, page.Lost)
			for _, e := range page.Events {
				printEvent(c.App.Writer, e)
			}
			return nil
		},
	}
}

func follow(c *cli.Context, sw *control.Client) error {
	lines := json.NewEncoder(c.App.Writer)
	lines.SetEscapeHTML(false)
	err := sw.Follow(c.Context, c.Uint64("after"), func(e ndiscore.Event, lost uint64) error {
		warnLost(c.App.ErrWriter, lost)
		if c.Bool("json") {
			return lines.Encode(e)
		}
		printEvent(c.App.Writer, e)
		return nil
	})
	end, ended := errors.AsType[*control.FollowEnd](err)
	switch {
	case c.Context.Err() != nil:
		return nil
	case ended && end.End == control.EndStopped:
		fmt.Fprintln(c.App.ErrWriter, "vswitch: the switch stops")
		return nil
	}
	return err
}

func warnLost(w io.Writer, lost uint64) {
	if lost > 0 {
		fmt.Fprintf(w, "vswitch: %d older events are no longer kept\n", lost)
	}
}

// printEvent prints one line: number, time, what, to whom, from -> to, why.
func printEvent(w io.Writer, e ndiscore.Event) {
	who := e.Adapter
	if e.Protocol != "" {
		if who != "" {
			who += " "
		}
		who += "(" + e.Protocol + ")"
	}
	change := ""
	switch {
	case e.From != "" && e.To != "":
		change = e.From + " -> " + e.To
	case e.To != "":
		change = "-> " + e.To
	case e.From != "":
		change = e.From + " ->"
	}
	fmt.Fprintf(w, "%5d  %s  %-17s  %-18s  %-28s  %s\n", e.Seq, timeText(e.Time), plain(e.What), plain(who), plain(change), plain(e.Why))
}
