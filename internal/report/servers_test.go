package report

import (
	"slices"
	"testing"

	"github.com/nativebench/nativebench/internal/results"
)

// Columns that no server knows are left out, and so is the section when no
// server tells anything.
func TestServersShowWhatIsKnown(t *testing.T) {
	run := oneFixture()
	section := func() []section {
		d, err := newDocument([]*results.Run{run})
		if err != nil {
			t.Fatal(err)
		}
		return d.runs[0].servers()
	}
	heads := func() (names []string) {
		for _, c := range section()[0].grids[0].columns {
			names = append(names, c.head)
		}
		return names
	}
	use := func() *results.ServerUse {
		for _, e := range run.Events {
			if e.Server != nil {
				return e.Server
			}
		}
		t.Fatal("the fixture has no server that tells")
		return nil
	}
	if want := []string{"", "running", "most running", "most waiting", "prefix hits", "scrapes", "per scrape"}; !slices.Equal(heads(), want) {
		t.Errorf("%q, want %q", heads(), want)
	}
	u := use()
	u.KVCacheUsedMax, u.QueueMeanSeconds, u.Preemptions, u.WaitingMax = 0.25, 0.0123, 2, -1
	if want := []string{"", "running", "most running", "in its queue", "KV cache", "prefix hits", "preempted", "scrapes", "per scrape"}; !slices.Equal(heads(), want) {
		t.Errorf("%q, want %q", heads(), want)
	}
	rows := section()[0].grids[0].rows
	var got []string
	for _, f := range rows[1].cells {
		got = append(got, f.main+f.aside)
	}
	if want := []string{"llama-server", "1.8", "2", "12.30ms", "25.0%", "0", "2", "9", "1.200ms"}; !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
	for i := range run.Events {
		run.Events[i].Server = nil
	}
	if s := section(); s != nil {
		t.Errorf("a section of nothing: %+v", s)
	}
}
