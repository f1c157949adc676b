// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package snapshot

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/vk-firkin/vk-firkin/vm"
	"github.com/vk-firkin/vk-firkin/vm/durable"
	"github.com/vk-firkin/vk-firkin/vm/snapshot/snapshottest"
)

func TestChooseScrub(t *testing.T) {
	now := time.Date(2026, 1, 10, 0, 0, 0, 0, time.UTC)
	set := func(key string, age time.Duration, status Status) Info {
		return Info{Key: key, Status: status, Manifest: Manifest{Instance: "i" + key, Created: now.Add(-age)}}
	}
	const day = 24 * time.Hour
	for _, tt := range []struct {
		name   string
		infos  []Info
		record scrubRecord
		due    []string
		next   time.Duration // from now; 0 is never
	}{
		{name: "nothing"},
		{"its publication counts", []Info{set("a", 6*day, StatusReady)}, scrubRecord{}, nil, day},
		{"exactly due", []Info{set("a", 7*day, StatusReady)}, scrubRecord{}, []string{"a"}, 0},
		{"the longest unread first", []Info{set("a", 8*day, StatusReady), set("b", 9*day, StatusReady), set("c", day, StatusReady)}, scrubRecord{}, []string{"b", "a"}, 6 * day},
		{"read since", []Info{set("a", 30*day, StatusReady)}, scrubRecord{Checked: map[string]time.Time{"ia": now.Add(-2 * day)}}, nil, 5 * day},
		{"the begun one before all", []Info{set("a", 8*day, StatusReady), set("b", day, StatusReady)}, scrubRecord{Instance: "ib", Members: 1}, []string{"b", "a"}, 0},
		{"sizes are wrong", []Info{set("a", day, StatusDamaged)}, scrubRecord{}, []string{"a"}, 0},
		{"the clock was set back", []Info{set("a", -30*day, StatusReady)}, scrubRecord{}, []string{"a"}, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			due, next := chooseScrub(tt.infos, tt.record, 7*day, now)
			var keys []string
			for _, i := range due {
				keys = append(keys, i.Key)
			}
			want := time.Time{}
			if tt.next != 0 {
				want = now.Add(tt.next)
			}
			if diff := cmp.Diff(tt.due, keys); diff != "" || !next.Equal(want) {
				t.Errorf("due (-want +got):\n%s, next %v, want %v", diff, next, want)
			}
		})
	}
}

// flip changes one bit of a member of a published set.
func flip(t *testing.T, s *Store, key, member string) {
	t.Helper()
	path := filepath.Join(s.dir, key, machineDir, member)
	if err := os.Chmod(path, 0o600); err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	data[len(data)/3] ^= 1
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	_, err = f.WriteAt(data[len(data)/3:][:1], int64(len(data)/3))
	if err := errors.Join(err, f.Close()); err != nil {
		t.Fatal(err)
	}
}

func scrubAll(t *testing.T, s *Store) (all []Scrubbed) {
	t.Helper()
	if _, err := s.Scrub(t.Context(), ScrubOptions{}, func(r Scrubbed) { all = append(all, r) }); err != nil {
		t.Fatal(err)
	}
	return all
}

// A set that is not what was saved is put aside and built anew, whatever file it is and
// whether anybody uses it; its machines go on. A set that is whole stays in use.
func TestScrubFindsDamage(t *testing.T) {
	for _, member := range []string{"memory", "device", "scratch"} {
		t.Run(member, func(t *testing.T) {
			d := snapshottest.New()
			var events []Event
			opts := testOptions(d)
			opts.OnEvent = func(e Event) { events = append(events, e) }
			s := openTest(t, t.TempDir(), opts)
			ref, _ := ensure(t, s)
			running := restore(t, s, ref, "m")
			if got := scrubAll(t, s); len(got) != 1 || got[0].Err != nil || got[0].Bytes == 0 {
				t.Fatalf("a whole set: %+v", got)
			}
			flip(t, s, ref.Key(), member)
			// The way of a restore has read the set once and does not read it again.
			if _, built := ensure(t, s); built {
				t.Fatal("a set that is in use was read again on the way of a restore")
			}
			got := scrubAll(t, s)
			if len(got) != 1 || !errors.Is(got[0].Err, vm.ErrSnapshotInvalid) || got[0].Key != ref.Key() {
				t.Fatalf("a flipped bit: %+v", got)
			}
			if _, err := s.Restore(t.Context(), ref, "n", testConfig(), RestoreOptions{}); !errors.Is(err, vm.ErrSnapshotInvalid) {
				t.Errorf("restored from a damaged set: %v", err)
			}
			if state, err := running.Machine.State(t.Context()); err != nil || state != vm.StateRunning {
				t.Errorf("the machine of before is %s, %v", state, err)
			}
			quarantines := 0
			for _, e := range events {
				if e.Type == EventQuarantined {
					quarantines++
				}
			}
			if quarantines != 1 {
				t.Errorf("%d events of a quarantine: %+v", quarantines, events)
			}
			fresh, built := ensure(t, s)
			if !built {
				t.Error("not built anew")
			}
			if r := restore(t, s, fresh, "o"); r.Machine.ID() != "o" {
				t.Error("not restored")
			}
			if got := scrubAll(t, s); len(got) != 1 || got[0].Err != nil {
				t.Errorf("the fresh set: %+v", got)
			}
		})
	}
}

// A set that another version made is left where it is, for that version: this one cannot
// tell whether it is whole.
func TestScrubLeavesOtherVersionsAlone(t *testing.T) {
	s := openTest(t, t.TempDir(), testOptions(snapshottest.New()))
	ref, _ := ensure(t, s)
	key := ref.Key()
	ref.Release()
	path := filepath.Join(s.dir, key, manifestName)
	if err := os.Chmod(path, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(`{"version":99,"more":true}`), 0o600); err != nil {
		t.Fatal(err)
	}
	if got := scrubAll(t, s); len(got) != 0 {
		t.Errorf("scrubbed %+v", got)
	}
	if info, err := s.Inspect(t.Context(), key); err != nil || info.Name != key || info.Status != StatusDamaged {
		t.Errorf("%+v, %v", info, err)
	}
	if err := os.WriteFile(path, []byte(`{"version":`), 0o600); err != nil {
		t.Fatal(err)
	}
	if got := scrubAll(t, s); len(got) != 1 || !errors.Is(got[0].Err, vm.ErrSnapshotInvalid) {
		t.Errorf("one that nobody can read: %+v", got)
	}
}

// A set that this process never used is looked after as well, and one that a scrub read
// is not read again before its first use.
func TestScrubOfAnIdleSet(t *testing.T) {
	d := snapshottest.New()
	dir := t.TempDir()
	s := openTest(t, dir, testOptions(d))
	ref, _ := ensure(t, s)
	ref.Release()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = openTest(t, dir, testOptions(d))
	if got := scrubAll(t, s); len(got) != 1 || got[0].Err != nil {
		t.Fatalf("a whole set: %+v", got)
	}
	flip(t, s, ref.Key(), "device")
	if _, built := ensure(t, s); built {
		t.Error("what a scrub had read was read again before its first use")
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = openTest(t, dir, testOptions(d))
	if got := scrubAll(t, s); len(got) != 1 || got[0].Err == nil {
		t.Errorf("a flipped bit: %+v", got)
	}
	if _, built := ensure(t, s); !built {
		t.Error("not built anew")
	}
	// Without a manifest it is nothing, whoever's it was.
	if err := os.Remove(filepath.Join(dir, ref.Key(), manifestName)); err != nil {
		t.Fatal(err)
	}
	if got := scrubAll(t, s); len(got) != 1 || got[0].Err == nil {
		t.Errorf("no manifest: %+v", got)
	}
}

// What was read is remembered: a process that ended in the middle of a set goes on with
// its next file, and a set that is not due is not read.
func TestScrubGoesOnAfterARestart(t *testing.T) {
	d := snapshottest.New()
	dir := t.TempDir()
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	opts := testOptions(d)
	opts.Now = func() time.Time { return now }
	s := openTest(t, dir, opts)
	ref, _ := ensure(t, s)
	all := scrubAll(t, s)[0].Bytes
	now = now.Add(8 * 24 * time.Hour)

	ctx, cancel := context.WithCancel(t.Context())
	reads := 0
	busy := func() bool {
		if reads++; reads == 3 {
			cancel() // the process ends after some files
		}
		return false
	}
	// A portion is one read's, so each read asks; the third is of the second file.
	if _, err := s.Scrub(ctx, ScrubOptions{Every: 7 * 24 * time.Hour, BytesPerSecond: paceSteps << 20, Busy: busy}, nil); !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	half := filepath.Join(dir, durable.TempPrefix+scrubName) // of a record that was being written
	if err := os.WriteFile(half, []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	s = openTest(t, dir, opts)
	if _, err := os.Lstat(half); !isNotExist(err) {
		t.Errorf("half a record is left: %v", err)
	}
	before := s.readScrub()
	var got []Scrubbed
	next, err := s.Scrub(t.Context(), ScrubOptions{Every: 7 * 24 * time.Hour}, func(r Scrubbed) { got = append(got, r) })
	if err != nil || len(got) != 1 || got[0].Err != nil || got[0].Key != ref.Key() {
		t.Fatalf("%+v, %v", got, err)
	}
	if before.Members == 0 || got[0].Bytes >= all {
		t.Errorf("read %d of %d bytes after a restart in the middle (%d files were read)", got[0].Bytes, all, before.Members)
	}
	if !next.Equal(now.Add(7 * 24 * time.Hour)) {
		t.Errorf("next is due at %v", next)
	}
	got = nil
	if _, err := s.Scrub(t.Context(), ScrubOptions{Every: 7 * 24 * time.Hour}, func(r Scrubbed) { got = append(got, r) }); err != nil || len(got) != 0 {
		t.Errorf("read what is not due: %+v, %v", got, err)
	}
	// A record that cannot be read costs another reading and nothing else.
	if err := os.WriteFile(filepath.Join(dir, scrubName), []byte(`{"version":99}`), 0o600); err != nil {
		t.Fatal(err)
	}
	if got := scrubAll(t, s); len(got) != 1 || got[0].Err != nil {
		t.Errorf("with a record of another version: %+v", got)
	}
}

// A paced reader takes no more than its share of each second, and nothing while there is
// something better to do.
func TestPace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		busyUntil := time.Now()
		p := &pace{ctx: t.Context(), perSecond: 1 << 20, busy: func() bool { return time.Now().Before(busyUntil) }}
		read := func(n int) time.Duration {
			start := time.Now()
			for range n {
				if err := p.take(1 << 20); err != nil {
					t.Fatal(err)
				}
			}
			return time.Since(start)
		}
		if took := read(10); took < 9900*time.Millisecond || took > 10100*time.Millisecond {
			t.Errorf("10 MiB at 1 MiB/s took %v", took)
		}
		busyUntil = time.Now().Add(time.Minute)
		if took := read(1); took < time.Minute {
			t.Errorf("read %v while pods were started", took)
		}
		p.perSecond, p.busy = 0, nil
		if took := read(1000); took != 0 {
			t.Errorf("without a limit: %v", took)
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if err := (&pace{ctx: ctx, perSecond: 1}).take(10); !errors.Is(err, context.Canceled) {
			t.Errorf("ended: %v", err)
		}
	})
}

// RestoreFailures failures in a row put a set aside although its files are what was
// saved; one success in between begins the count anew.
func TestFailuresThatPutAside(t *testing.T) {
	boom := errors.New("boom")
	for n := 1; n <= 4; n++ {
		d := snapshottest.New()
		opts := testOptions(d)
		opts.RestoreFailures = n
		s := openTest(t, t.TempDir(), opts)
		ref, _ := ensure(t, s)
		fail := func(times int) {
			d.SetFault(faultOn("restore", boom))
			defer d.SetFault(nil)
			for i := range times {
				if s.isGone(ref.set) {
					t.Fatalf("with %d: put aside after %d failures", n, i)
				}
				if _, err := s.Restore(t.Context(), ref, "m", testConfig(), RestoreOptions{}); !errors.Is(err, boom) {
					t.Fatalf("with %d: %v", n, err)
				}
			}
		}
		fail(n - 1)
		good := restore(t, s, ref, "good")
		if err := errors.Join(good.Machine.Delete(t.Context()), s.Forget("good")); err != nil {
			t.Fatal(err)
		}
		fail(n)
		if !s.isGone(ref.set) {
			t.Errorf("with %d: in use after %d failures", n, n)
		}
	}
}

// Another version of the hypervisor or of the host's system has other snapshots: the old
// ones are not used, not taken for damaged, kept while a machine needs them, and collected.
func TestAnotherHost(t *testing.T) {
	d := snapshottest.New()
	dir := t.TempDir()
	s := openTest(t, dir, testOptions(d))
	old, _ := ensure(t, s)
	m := restore(t, s, old, "m")
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	d.SetCompatibility("test-2")
	s = openTest(t, dir, testOptions(d))
	fresh, built := ensure(t, s)
	if !built || fresh.Key() == old.Key() {
		t.Fatalf("used the snapshot of another host: built %v", built)
	}
	for _, r := range scrubAll(t, s) {
		if r.Err != nil {
			t.Errorf("a snapshot of another host counts as damaged: %v", r.Err)
		}
	}
	collected := func() (removed []string) {
		report, err := s.GC(t.Context(), wants(fresh.Key()))
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range report.Decisions {
			if d.Remove {
				removed = append(removed, d.Info.Key)
			}
		}
		return removed
	}
	if got := collected(); len(got) != 0 {
		t.Errorf("collected %v under a machine", got)
	}
	if err := errors.Join(m.Machine.Delete(t.Context()), s.Forget("m")); err != nil {
		t.Fatal(err)
	}
	if got := collected(); len(got) != 1 || got[0] != old.Key() {
		t.Errorf("collected %v, want the old one", got)
	}
}

// A reason may be of what a guest or a tool wrote, which JSON makes longer: it is kept.
func TestReasonOfControlCharacters(t *testing.T) {
	s := openTest(t, t.TempDir(), testOptions(snapshottest.New()))
	ref, _ := ensure(t, s)
	key := ref.Key()
	ref.Release()
	reason := strings.Repeat("\x01", 2*maxReason)
	if err := s.Quarantine(t.Context(), key, reason); err != nil {
		t.Fatal(err)
	}
	infos, err := s.List(t.Context())
	if err != nil || len(infos) != 1 || infos[0].Problem != reason[:maxReason] {
		t.Errorf("%d snapshots, %v", len(infos), err)
	}
}
