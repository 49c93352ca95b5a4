package main

import (
	"fmt"

	"github.com/urfave/cli/v2"
)

// What each shell has to be told so that it asks us (urfave/cli answers the flag
// --generate-bash-completion with what could come next).
var completions = map[string]string{
	"bash": `# vswitch: source <(vswitch completion bash)
_vswitch() {
  local words=("${COMP_WORDS[@]:0:COMP_CWORD}")
  local IFS=$'\n'
  COMPREPLY=($(compgen -W "$("${words[@]}" --generate-bash-completion 2>/dev/null | cut -d: -f1)" -- "${COMP_WORDS[COMP_CWORD]}"))
}
complete -o bashdefault -o default -F _vswitch vswitch
`,
	"zsh": `#compdef vswitch
# vswitch: source <(vswitch completion zsh)
_vswitch() {
  local -a next
  next=("${(@f)$(_CLI_ZSH_AUTOCOMPLETE_HACK=1 ${words[@]:0:#words[@]-1} --generate-bash-completion 2>/dev/null)}")
  _describe 'vswitch' next
}
compdef _vswitch vswitch
`,
	"fish": `# vswitch: vswitch completion fish | source
function __vswitch_next
  set -l words (commandline -opc)
  $words --generate-bash-completion 2>/dev/null | string replace ':' \t
end
complete -c vswitch -f -a '(__vswitch_next)'
`,
}

func completionCommand() *cli.Command {
	return &cli.Command{
		Name: "completion", Usage: "print what makes a shell complete our command lines", ArgsUsage: "bash|zsh|fish",
		Description: example("source <(vswitch completion bash)"),
		Action: func(c *cli.Context) error {
			args, err := arguments(c, "SHELL")
			if err != nil {
				return err
			}
			script, ok := completions[args[0]]
			if !ok {
				return badInputf("%s: %q: one of bash, fish, zsh", c.Command.HelpName, args[0])
			}
			_, err = fmt.Fprint(c.App.Writer, script)
			return err
		},
	}
}

func manCommand() *cli.Command {
	return &cli.Command{
		Name: "man", Usage: "print the manual page, in roff", Description: example("vswitch man | man -l -"),
		Action: func(c *cli.Context) error {
			if _, err := arguments(c); err != nil {
				return err
			}
			page, err := c.App.ToMan()
			if err != nil {
				return fmt.Errorf("manual page: %w", err)
			}
			_, err = fmt.Fprint(c.App.Writer, page)
			return err
		},
	}
}
