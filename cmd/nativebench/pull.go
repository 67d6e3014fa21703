package main

import (
	"errors"
	"fmt"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/nativebench/nativebench/internal/hub"
)

func pullCommand() *cli.Command {
	return &cli.Command{
		Name: "pull", Usage: "download a model from the Hugging Face hub", ArgsUsage: "MODEL",
		Description: "Examples:\n" +
			"   nativebench models pull gpt2\n" +
			"   HF_TOKEN=hf_… nativebench models pull llama-2-7b-chat --revision main\n\n" +
			"The files go to the hub's own cache (HF_HUB_CACHE, else hub/ in HF_HOME, else\n" +
			"~/.cache/huggingface/hub), where vLLM, TGI and Transformers look, too; what they\n" +
			"downloaded is not fetched again. A pull that was stopped goes on where it was.\n" +
			"HF_ENDPOINT names a mirror, HF_HUB_OFFLINE forbids downloads.",
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "revision", Value: hub.DefaultRevision, Usage: "`REV`: branch, tag or commit"},
			&cli.BoolFlag{Name: "verify", Usage: "read the files that are in the cache and check their hashes, too"},
			&cli.BoolFlag{Name: "dry-run", Usage: "say what would be downloaded, and stop"},
		},
		Action: pullModel,
	}
}

func pullModel(c *cli.Context) error {
	m, err := oneModel(c)
	if err != nil {
		return err
	}
	client, err := hub.NewClient()
	if err != nil {
		return usageError{err}
	}
	stop := listen(c.Context, c.App.ErrWriter)
	defer stop.close()
	ctx, cancel := stop.either()
	defer cancel()
	show := newLiveLine(c.App.ErrWriter)
	show.draw("asking the hub for " + m.HubID)
	todo, err := client.Plan(ctx, m.HubID, c.String("revision"))
	show.erase()
	if err != nil {
		if stop.stopped() {
			return exitStatus(exitInterrupted)
		}
		if he := (*hub.Error)(nil); errors.As(err, &he) && (he.Kind == hub.BadInput || he.Kind == hub.Offline) {
			return refuse("models pull: %w", err)
		}
		return fmt.Errorf("models pull: %w", err)
	}
	for _, line := range pullLines(todo) {
		fmt.Fprintln(c.App.Writer, line)
	}
	if err := todo.CheckSpace(); err != nil {
		return fmt.Errorf("models pull: %w", err)
	}
	if c.Bool("dry-run") {
		return nil
	}
	began := time.Now()
	s, err := client.Pull(ctx, todo, pullProgress(show))
	show.erase()
	if err != nil {
		if stop.stopped() {
			fmt.Fprintln(c.App.ErrWriter, "stopped; what has arrived is kept, the same command goes on there")
			return exitStatus(exitInterrupted)
		}
		return fmt.Errorf("models pull: %w", err)
	}
	if n := todo.Fetch(); n > 0 {
		fmt.Fprintf(c.App.Writer, "fetched and checked in %s\n", short(time.Since(began)))
	}
	if c.Bool("verify") {
		err := s.Verify(ctx, func(at hub.State) { show.draw(fmt.Sprintf("checking: %s of %s", amount(at.Done), amount(at.Total))) })
		show.erase()
		if err != nil {
			if stop.stopped() {
				return exitStatus(exitInterrupted)
			}
			return fmt.Errorf("models pull: %w", err)
		}
		fmt.Fprintf(c.App.Writer, "checked: none of the %d files differs from its hash\n", len(s.Files))
	}
	fmt.Fprintf(c.App.Writer, "%s\n", s.Dir)
	return nil
}

// pullLines say what a pull will do, before it does it.
func pullLines(p *hub.Plan) []string {
	lines := []string{fmt.Sprintf("%s, revision %s: commit %s", p.Repo, p.Asked, p.Revision)}
	if p.MovedTo != "" {
		lines = append(lines, fmt.Sprintf("the hub calls it %s now; the cache keeps the name that was asked for", p.MovedTo))
	}
	what := fmt.Sprintf("%d files, %s", len(p.Files), amount(p.Bytes()))
	switch n := p.Fetch(); {
	case n == 0:
		what += ", all in the cache " + p.Cache
	case n < p.Bytes():
		what += fmt.Sprintf(": %s to fetch, the rest is in the cache %s", amount(n), p.Cache)
	default:
		what += " to fetch into " + p.Cache
	}
	return append(lines, what)
}

// amount prints bytes of any number for people.
func amount(bytes int64) string {
	switch {
	case bytes < 1<<10:
		return fmt.Sprintf("%d bytes", bytes)
	case bytes < 10<<20:
		return fmt.Sprintf("%.1f KiB", float64(bytes)/(1<<10))
	}
	return gib(bytes)
}

// pullProgress shows how far a pull is: the share, the rate of the last
// seconds, and the time left at that rate.
func pullProgress(show *liveLine) hub.Progress {
	var r rate
	said := ""
	return func(s hub.State) {
		if s.Note != "" && s.Note != said {
			said = s.Note
			show.line(s.Note)
		}
		r.add(time.Now(), s.Fetched)
		text := fmt.Sprintf("%s of %s", amount(s.Done), amount(s.Total))
		if perSecond := r.perSecond(); perSecond > 0 && s.Done < s.Total {
			left := time.Duration(float64(s.Total-s.Done) / perSecond * float64(time.Second))
			text += fmt.Sprintf(" · %s/s · about %s left", amount(int64(perSecond)), short(left))
		}
		show.draw(text)
	}
}

// rate is how fast a counter grew in the last seconds.
type rate struct {
	at []time.Time
	n  []int64
}

const rateWindow = 10 * time.Second

func (r *rate) add(now time.Time, n int64) {
	r.at, r.n = append(r.at, now), append(r.n, n)
	for len(r.at) > 2 && now.Sub(r.at[1]) >= rateWindow {
		r.at, r.n = r.at[1:], r.n[1:]
	}
}

// perSecond is 0 while it is not known.
func (r *rate) perSecond() float64 {
	if len(r.at) < 2 {
		return 0
	}
	last := len(r.at) - 1
	seconds := r.at[last].Sub(r.at[0]).Seconds()
	if seconds <= 0 {
		return 0
	}
	return float64(r.n[last]-r.n[0]) / seconds
}

// inCache says what of a model the hub's cache has.
func inCache(hubID string) string {
	list, err := hub.List(hubID)
	if err != nil {
		return "unreadable: " + err.Error()
	}
	s, err := hub.Find(hubID, "")
	switch {
	case err == nil:
	case !errors.Is(err, hub.ErrMissing):
		return "unreadable: " + err.Error()
	case len(list) == 0:
		return ""
	default:
		s = list[0]
	}
	text := fmt.Sprintf("%s, %.12s", amount(s.Bytes()), s.Revision)
	if more := len(list) - 1; more > 0 {
		text += fmt.Sprintf(" and %d more", more)
	}
	return text
}
