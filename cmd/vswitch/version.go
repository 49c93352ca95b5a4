package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"runtime"

	"github.com/urfave/cli/v2"

	vswitch "github.com/seed-b14e907b/vswitch"
	"github.com/seed-b14e907b/vswitch/control"
)

// versions answers `version --json`.
type versions struct {
	Version string               `json:"version"` // of this program
	Go      string               `json:"go"`
	OS      string               `json:"os"`
	Arch    string               `json:"arch"`
	Running *control.VersionInfo `json:"running"` // of the switch that answers; null if none does
}

func versionCommand() *cli.Command {
	return command{
		name: "version", usage: "which program this is, and which one runs", example: "vswitch version", flags: []cli.Flag{jsonFlag()},
		do: func(ctx context.Context, sw *control.Client, _ *cli.Context, _ []string) (any, func(io.Writer), error) {
			v := versions{Version: vswitch.Version(), Go: runtime.Version(), OS: runtime.GOOS, Arch: runtime.GOARCH}
			running, err := sw.Version(ctx)
			switch {
			case err == nil:
				v.Running = &running
			case !errors.Is(err, control.ErrUnreachable):
				return nil, nil, err
			}
			return v, func(w io.Writer) {
				fmt.Fprintf(w, "vswitch %s %s %s/%s\n", plain(v.Version), v.Go, v.OS, v.Arch)
				if r := v.Running; r != nil {
					fmt.Fprintf(w, "running: vswitch %s %s on %s, since %s (%s)\n", plain(r.Version), plain(r.Go), plain(sw.Socket()), timeText(r.Started), plain(r.Uptime))
				}
			}, nil
		},
	}.build()
}
