package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"

	"github.com/urfave/cli/v2"
)

// Exit codes. They are part of the interface: scripts depend on them.
const (
	exitOK          = 0
	exitError       = 1   // something went wrong
	exitUsage       = 2   // refused before anything was started
	exitCellsFailed = 3   // the run is complete, but a cell of it failed, or over failedShare of its requests failed or are left out
	exitInterrupted = 130 // stopped by Ctrl-C; what was measured is kept
)

// run is the whole program. args[0] is its name.
func run(ctx context.Context, stdout, stderr io.Writer, args []string) int {
	return runWith(ctx, stdout, stderr, args, backends())
}

// runWith is run with other backends: tests bring a fake one.
func runWith(ctx context.Context, stdout, stderr io.Writer, args []string, known registry) int {
	app := newApp(known)
	app.Writer, app.ErrWriter = stdout, stderr
	err := app.RunContext(ctx, flagsFirst(app, args))
	var quiet exitStatus
	var coded cli.ExitCoder
	switch {
	case err == nil:
		return exitOK
	case errors.As(err, &quiet):
		return int(quiet)
	case errors.As(err, &coded):
		if err.Error() != "" {
			fmt.Fprintln(stderr, "nativebench: "+err.Error())
		}
		return coded.ExitCode()
	}
	fmt.Fprintln(stderr, "nativebench: "+err.Error())
	var usage usageError
	if errors.As(err, &usage) {
		return exitUsage
	}
	return exitError
}

// exitStatus ends the program with a status and without a word: all was said.
type exitStatus int

func (s exitStatus) Error() string { return fmt.Sprintf("exit status %d", int(s)) }

// usageError is a refusal of what was asked, before anything was started.
type usageError struct{ error }

func (e usageError) Unwrap() error { return e.error }

func refuse(format string, args ...any) error { return usageError{fmt.Errorf(format, args...)} }

const appHelp = `{{.Name}}: {{.Usage}}

{{.Description}}

Commands:{{range .VisibleCommands}}
  {{printf "%-12s" .Name}}{{.Usage}}{{end}}

Every command explains itself: {{.Name}} COMMAND --help. Build facts: {{.Name}} --version.
`

func newApp(known registry) *cli.App {
	app := &cli.App{
		Name:                  "nativebench",
		Usage:                 "what does serving a language model cost over running it in process?",
		CustomAppHelpTemplate: appHelp,
		Description: "nativebench runs a model in this process, token by token, beside servers of it,\n" +
			"with the same prompts and the same sampling, and sets the two side by side.\n\n" +
			"Try:  nativebench compare\n" +
			"      nativebench doctor\n" +
			"      nativebench explain ttft\n\n" +
			"Exit status: 0 done; 1 an error; 2 refused before anything started;\n" +
			"3 done, but a cell failed, or over a tenth of its requests failed or are left out of the numbers; 130 stopped by Ctrl-C (what was measured is kept).",
		HideVersion:          true, // versionLine opens the engine: only on demand, see Before
		HideHelpCommand:      true,
		EnableBashCompletion: true,
		ExitErrHandler:       func(*cli.Context, error) {}, // runWith decides
		Flags: []cli.Flag{
			&cli.BoolFlag{Name: "version", Aliases: []string{"v"}, Usage: "print the version", DisableDefaultText: true},
		},
		Before: func(c *cli.Context) error {
			if !c.Bool("version") {
				return nil
			}
			fmt.Fprintf(c.App.Writer, "%s version %s\n", c.App.Name, versionLine())
			return exitStatus(exitOK)
		},
		Commands: []*cli.Command{
			compareCommand(known),
			runCommand(known),
			verifyCommand(known),
			reportCommand(),
			explainCommand(),
			modelsCommand(),
			doctorCommand(),
			completionCommand(),
			cellCommand(known),
			askCommand(known),
		},
	}
	app.Action = func(c *cli.Context) error {
		if c.Args().Present() {
			return unknownCommand(app, c.Args().First())
		}
		return cli.ShowAppHelp(c)
	}
	app.OnUsageError = func(_ *cli.Context, err error, _ bool) error {
		return flagError(&cli.Command{Flags: app.Flags}, app.Name, err)
	}
	everyCommand(app.Commands, app.Name, func(cmd *cli.Command, path string) {
		cmd.HideHelpCommand = true
		cmd.CustomHelpTemplate = helpTemplate(cmd, path)
		cmd.OnUsageError = func(_ *cli.Context, err error, _ bool) error { return flagError(cmd, path, err) }
	})
	return app
}

// everyCommand visits the commands; path is how one is called.
func everyCommand(list []*cli.Command, parent string, do func(cmd *cli.Command, path string)) {
	for _, cmd := range list {
		path := parent + " " + cmd.Name
		do(cmd, path)
		everyCommand(cmd.Subcommands, path, do)
	}
}

func unknownCommand(app *cli.App, name string) error {
	var names []string
	for _, cmd := range app.VisibleCommands() {
		names = append(names, cmd.Name)
	}
	return refuse("unknown command %s: choose from %s", shownWord(name), strings.Join(names, ", "))
}

// noArguments refuses words that a command would silently ignore.
func noArguments(c *cli.Context) error {
	if c.Args().Present() {
		return refuse("%s takes flags only, but was given %s; see nativebench %s --help", c.Command.Name, shownWord(c.Args().First()), c.Command.Name)
	}
	return nil
}

// shownWord quotes a word of the command line, but no URL: that may hold a
// password.
func shownWord(word string) string {
	if strings.Contains(word, "://") {
		return "a URL"
	}
	return strconv.Quote(word)
}

// flagsFirst moves the flags of the command before its arguments: the parser
// stops at the first argument, but people write "report DIR --format csv".
func flagsFirst(app *cli.App, args []string) []string {
	if len(args) < 2 || args[len(args)-1] == "--generate-bash-completion" {
		return args
	}
	list, flags := app.Commands, app.Flags
	at := 1
	for ; at < len(args) && !strings.HasPrefix(args[at], "-"); at++ {
		i := slices.IndexFunc(list, func(cmd *cli.Command) bool { return cmd.HasName(args[at]) })
		if i < 0 {
			break
		}
		list, flags = list[i].Subcommands, list[i].Flags
	}
	var front, back []string
	for rest := args[at:]; len(rest) > 0; rest = rest[1:] {
		word := rest[0]
		switch {
		case word == "--":
			back = append(back, rest[1:]...)
			return slices.Concat(args[:at], front, []string{"--"}, back)
		case len(word) < 2 || word[0] != '-':
			back = append(back, word)
		default:
			front = append(front, word)
			if takesValue(flags, word) && len(rest) > 1 {
				rest = rest[1:]
				front = append(front, rest[0])
			}
		}
	}
	return slices.Concat(args[:at], front, back)
}

// takesValue tells whether the word after this flag belongs to it.
func takesValue(flags []cli.Flag, word string) bool {
	name := strings.TrimLeft(word, "-")
	if strings.Contains(name, "=") {
		return false
	}
	for _, f := range flags {
		if slices.Contains(f.Names(), name) {
			_, isBool := f.(*cli.BoolFlag)
			return !isBool
		}
	}
	return false
}
