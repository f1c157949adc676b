// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package garbage

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/vk-firkin/vk-firkin/vm/durable"
	"github.com/vk-firkin/vk-firkin/vm/image"
	"github.com/vk-firkin/vk-firkin/vm/snapshot"
)

func TestDecide(t *testing.T) {
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	for _, tt := range []struct {
		name          string
		keeper        string
		age, grace    time.Duration
		remove, young bool
	}{
		{"nobody needs it", "", time.Hour, 0, true, false},
		{"somebody needs it", "its pod", 1000 * time.Hour, 0, false, false},
		{"exactly as old as the grace period", "", time.Hour, time.Hour, true, false},
		{"younger", "", time.Hour, time.Hour + 1, false, true},
		{"perhaps being made, whatever the grace period", "", settle - 1, 0, false, true},
		{"not any more", "", settle, 0, true, false},
		{"the clock was set back", "", -time.Hour, 0, false, true},
	} {
		got := decide(thing{kind: KindPod, name: "x", keeper: tt.keeper, changed: now.Add(-tt.age), bytes: 5}, tt.grace, now)
		if got.Remove != tt.remove || got.Young != tt.young || got.Reason == "" || got.Bytes != 5 {
			t.Errorf("%s: %+v", tt.name, got)
		}
	}
}

func TestChoose(t *testing.T) {
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	snap := func(name string, age time.Duration, remove bool, images ...string) snapshot.Decision {
		d := snapshot.Decision{Remove: remove, Info: snapshot.Info{Name: name, AllocatedBytes: 10, LastUsed: now.Add(-age)}}
		if len(images) > 0 {
			d.Info.Manifest.Template = &snapshot.Template{}
			for _, i := range images {
				d.Info.Manifest.Template.Images = append(d.Info.Manifest.Template.Images, snapshot.ManifestImage{Digest: i})
			}
		}
		return d
	}
	img := func(name string, age time.Duration, remove bool) image.Decision {
		return image.Decision{Remove: remove, Info: image.Info{Digest: name, SizeBytes: 10, LastUsed: now.Add(-age)}}
	}
	snapshots := []snapshot.Decision{snap("s1", 3*time.Hour, true), snap("s2", time.Hour, true, "i3"), snap("s3", 9*time.Hour, false)}
	images := []image.Decision{img("i1", 4*time.Hour, true), img("i2", 2*time.Hour, true), img("i3", 8*time.Hour, true), img("i4", 9*time.Hour, false)}
	for _, tt := range []struct {
		need                int64
		keys, digests, with []string
	}{
		{-5, []string{}, []string{}, []string{}},
		{0, []string{}, []string{}, []string{}},
		{1, []string{"s1"}, []string{"i1"}, []string{}},
		{10, []string{"s1"}, []string{"i1"}, []string{}},
		{11, []string{"s1", "s2"}, []string{"i1", "i2"}, []string{}},
		{20, []string{"s1", "s2"}, []string{"i1", "i2"}, []string{}},
		{21, nil, []string{"i1", "i2", "i3"}, []string{"s2"}}, // the image of a snapshot not before it
		{1000, nil, nil, []string{"s2"}},
	} {
		keys, digests := choose(freeableSnapshots(snapshots), tt.need), choose(freeableImages(snapshots, images), tt.need)
		with := madeWith(snapshots, images, digests)
		if diff := cmp.Diff([][]string{tt.keys, tt.digests, tt.with}, [][]string{keys, digests, with}); diff != "" {
			t.Errorf("need %d (-want +got):\n%s", tt.need, diff)
		}
	}
}

// What is freed under pressure is chosen by the same rules as what is collected: a record
// keeps an image that nobody has pinned yet, a snapshot that stays keeps the image that it
// was made with, and none of a template goes before the node was told its templates.
func TestFree(t *testing.T) {
	w := newWorld(t, 1)
	pull := func(n int) *image.Image {
		img, err := w.images.Pull(t.Context(), w.refs[n], image.PullOptions{})
		if err != nil {
			t.Fatal(err)
		}
		img.Release()
		return img
	}
	template, recorded, loose := pull(0), pull(1), pull(2)
	ref, _, err := w.snapshots.Ensure(t.Context(), w.spec(0, template))
	if err != nil {
		t.Fatal(err)
	}
	key := ref.Key()
	ref.Release()
	w.stamp(filepath.Join(w.state, "snapshots", key), filepath.Join(w.state, "snapshots", ".refs", key))
	base := snapshot.Key(w.spec(0, nil), w.driver.Features())
	w.wanted = []string{base}
	w.write(filepath.Join(podsDir, "uid", podRecord), `{"image":"`+recorded.Digest+`"}`)
	w.now = w.now.Add(time.Hour)
	const all = 1 << 50
	check := func(step string, freed int64, err error, some bool, want map[string]bool) {
		t.Helper()
		if err != nil || freed > 0 != some {
			t.Errorf("%s: freed %d, %v", step, freed, err)
		}
		for _, i := range []*image.Image{template, recorded, loose} {
			if got := w.exists("images", strings.TrimPrefix(i.Digest, "sha256:")); got != want[i.Digest] {
				t.Errorf("%s: image %s exists: %v", step, i.Ref, got)
			}
		}
		if got := w.exists("snapshots", key); got != want[key] {
			t.Errorf("%s: the template's snapshot exists: %v", step, got)
		}
	}
	c := w.collector(w)
	w.complete = false
	freed, err := c.FreeSnapshots(t.Context(), all, time.Minute)
	check("before the node knows its templates", freed, err, false, map[string]bool{template.Digest: true, recorded.Digest: true, loose.Digest: true, key: true})
	freed, err = c.FreeImages(t.Context(), all, time.Minute)
	check("images then", freed, err, true, map[string]bool{template.Digest: true, recorded.Digest: true, key: true})
	w.complete = true
	freed, err = c.FreeImages(t.Context(), all, 2*time.Hour)
	check("the snapshot was just used", freed, err, false, map[string]bool{template.Digest: true, recorded.Digest: true, key: true})
	freed, err = c.FreeImages(t.Context(), 1, time.Minute)
	check("the image with its snapshot", freed, err, true, map[string]bool{recorded.Digest: true})
	w.wanted = nil
	w.stamp(filepath.Join(w.state, "snapshots", base), filepath.Join(w.state, "snapshots", ".refs", base))
	w.now = w.now.Add(time.Hour)
	freed, err = c.FreeSnapshots(t.Context(), 1, time.Minute)
	if w.exists("snapshots", base) {
		t.Error("the base's snapshot stays")
	}
	check("snapshots", freed, err, true, map[string]bool{recorded.Digest: true})
}

// References are found in records of any version, also in what is no JSON at all; a record
// that cannot be read leaves alone what it may speak of, and nothing else.
func TestReferencesOfAnyVersion(t *testing.T) {
	w := newWorld(t, 1)
	digest := strings.Repeat("ab", 32)
	w.write(filepath.Join(podsDir, "uid", podRecord), `{"version":99,"machines":["m-1"],"digest":"sha256:`+digest+`"`)
	w.write(filepath.Join(podsDir, "rest", "logs", "0.log"), "x")
	for _, m := range []string{"m-1", "m-10", "m-2", "m-aside"} {
		w.write(filepath.Join(machinesDir, m, "scratch.qcow2"), "x")
	}
	w.write(filepath.Join(asideDir, "m-aside.json"), `{}`)
	w.write(filepath.Join(asideDir, "aside.json"), `{}`)
	w.write(filepath.Join(warmDir, "aside.json"), `{`) // its machine is gone, but it was put aside
	w.write(filepath.Join(warmDir, "gone.json"), `{`)
	w.write(filepath.Join(warmDir, "note from somebody"), `{`)
	w.write(filepath.Join(warmDir, "m-2.json"), `{}`)
	w.write(filepath.Join(warmDir, ".tmp-x"), `{`)
	w.now = w.now.Add(time.Hour)
	refs, err := readReferences(durable.Host, w.state)
	if err != nil || refs.speaksOf("m-1") == "" || refs.speaksOf("m-10") != "" || refs.digests[digest] == "" {
		t.Fatalf("references %+v, %v", refs, err)
	}
	if err := os.Chmod(filepath.Join(w.state, podsDir, "uid", podRecord), 0); err != nil {
		t.Fatal(err)
	}
	large := filepath.Join(podsDir, "large", podRecord)
	w.write(large, "")
	if err := os.Truncate(filepath.Join(w.state, large), maxRecordBytes+1); err != nil {
		t.Fatal(err)
	}
	report, err := w.collector(nil).Collect(t.Context(), Options{})
	if err == nil || len(report.Faults) != 1 {
		t.Errorf("a record that cannot be read: %v, %q", err, report.Faults)
	}
	if got := w.removed(report); !cmp.Equal(got, []string{"pod rest"}) {
		t.Errorf("with a record that cannot be read: removed %v", got)
	}
	if err := os.RemoveAll(filepath.Join(w.state, podsDir, "large")); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(filepath.Join(w.state, podsDir, "uid", podRecord), 0o600); err != nil {
		t.Fatal(err)
	}
	want := []string{"leftover .tmp-x", "machine m-10", "machine m-2", "record gone.json"}
	dry, err := w.collector(nil).Collect(t.Context(), Options{DryRun: true})
	if got := w.removed(dry); err != nil || !cmp.Equal(got, want) {
		t.Errorf("would remove %v, %v", got, err)
	}
	report, err = w.collector(nil).Collect(t.Context(), Options{})
	if got := w.removed(report); err != nil || !cmp.Equal(got, want) {
		t.Errorf("removed %v, %v", got, err)
	}
	if dry.Reclaimable() == nil || dry.Reclaimable()[KindMachine].Count != 2 || report.Reclaimable()[KindMachine].Count != 0 {
		t.Errorf("reclaimable: %v, then %v", dry.Reclaimable(), report.Reclaimable())
	}
	// The record of m-2 spoke of a machine that went after it was looked at.
	report, err = w.collector(nil).Collect(t.Context(), Options{})
	if got := w.removed(report); err != nil || !cmp.Equal(got, []string{"record m-2.json"}) {
		t.Errorf("a second time: removed %v, %v", got, err)
	}
}

// A pipe in the place of a record keeps nobody waiting, and hides what it may have said.
func TestPipeForARecord(t *testing.T) {
	w := newWorld(t, 1)
	w.write(filepath.Join(machinesDir, "m-1", "console"), "x")
	w.write(filepath.Join(podsDir, "uid", "log"), "x")
	if err := syscall.Mkfifo(filepath.Join(w.state, podsDir, "uid", podRecord), 0o600); err != nil {
		t.Fatal(err)
	}
	w.now = w.now.Add(time.Hour)
	report, err := w.collector(nil).Collect(t.Context(), Options{})
	if err == nil || len(w.removed(report)) != 0 {
		t.Errorf("removed %v, %v", w.removed(report), err)
	}
}

// One that the node cannot discard stays and is reported; the rest goes.
func TestFaultsDoNotKeepTheRest(t *testing.T) {
	w := newWorld(t, 1)
	for _, m := range []string{"m-1", "m-2"} {
		w.write(filepath.Join(machinesDir, m, "console"), "x")
	}
	w.now = w.now.Add(time.Hour)
	boom := errors.New("boom")
	w.discard = func(id string) error {
		if id == "m-1" {
			return boom
		}
		return os.RemoveAll(filepath.Join(w.state, machinesDir, id))
	}
	report, err := w.collector(w).Collect(t.Context(), Options{})
	if !errors.Is(err, boom) || !cmp.Equal(w.removed(report), []string{"machine m-2"}) {
		t.Errorf("removed %v, %v", w.removed(report), err)
	}
	if r := report.Reclaimable()[KindMachine]; r.Count != 1 {
		t.Errorf("reclaimable %+v", r)
	}
}
