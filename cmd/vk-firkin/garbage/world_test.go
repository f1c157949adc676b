// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package garbage

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/vk-firkin/vk-firkin/test/images"
	"github.com/vk-firkin/vk-firkin/vm"
	"github.com/vk-firkin/vk-firkin/vm/image"
	"github.com/vk-firkin/vk-firkin/vm/snapshot"
	"github.com/vk-firkin/vk-firkin/vm/snapshot/snapshottest"
)

// world is a node's files, with its own clock, and a node beside them.
type world struct {
	t      *testing.T
	random *rand.Rand
	state  string
	now    time.Time

	driver    *snapshottest.Driver
	snapshots *snapshot.Store
	images    *image.Store
	refs      []string // of images in a registry

	// The node.
	wanted    []string
	complete  bool
	accounted []string
	discard   func(string) error
}

const worldSlot = 1 << 20

func newWorld(t *testing.T, seed uint64) *world {
	t.Helper()
	// Far from the clock that files get, so that one that was not stamped is seen.
	w := &world{
		t: t, random: rand.New(rand.NewPCG(seed, seed)), state: t.TempDir(), now: time.Now().Add(-1000 * time.Hour).Truncate(time.Second),
		driver: snapshottest.New(), complete: true,
	}
	w.discard = func(id string) error { return os.RemoveAll(filepath.Join(w.state, machinesDir, id)) }
	clock := func() time.Time { return w.now }
	var err error
	w.snapshots, err = snapshot.Open(t.Context(), filepath.Join(w.state, "snapshots"), snapshot.Options{
		Driver: w.driver, MinFreeBytes: -1, Now: clock, Timeouts: snapshot.Timeouts{Settle: time.Microsecond},
	})
	if err != nil {
		t.Fatal(err)
	}
	r, err := images.StartRegistry(images.RegistryOptions{})
	if err != nil {
		t.Fatal(err)
	}
	w.images, err = image.Open(filepath.Join(w.state, "images"), image.Options{
		SlotBytes: worldSlot, Arch: "amd64", InsecureRegistries: []string{r.Addr()}, Now: clock,
	})
	if err != nil {
		t.Fatal(err)
	}
	for i := range 4 {
		l, err := images.Layer(images.File("file", 0o644, fmt.Sprint(i)))
		if err != nil {
			t.Fatal(err)
		}
		img, err := images.Image("amd64", v1.Config{Cmd: []string{"/file"}}, l)
		if err != nil {
			t.Fatal(err)
		}
		ref, err := r.Push(fmt.Sprintf("image-%d", i), img)
		if err != nil {
			t.Fatal(err)
		}
		w.refs = append(w.refs, ref)
	}
	t.Cleanup(func() {
		if err := errors.Join(w.snapshots.Close(), w.images.Close(), r.Close()); err != nil {
			t.Error(err)
		}
	})
	return w
}

func (w *world) collector(live Live) *Collector {
	return New(Config{StateDir: w.state, Snapshots: w.snapshots, Images: w.images, Live: live, Now: func() time.Time { return w.now }})
}

// Wanted, Machines and Discard are Live.
func (w *world) Wanted() ([]string, bool) { return w.wanted, w.complete }

func (w *world) Machines() []string { return w.accounted }

func (w *world) Discard(_ context.Context, id string) error {
	if slices.Contains(w.accounted, id) {
		w.t.Errorf("machine %s was discarded, which the node accounts for", id)
	}
	return w.discard(id)
}

// write makes a file of the state root at the world's time.
func (w *world) write(path, text string) {
	w.t.Helper()
	path = filepath.Join(w.state, path)
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		w.t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		w.t.Fatal(err)
	}
	w.stamp(path)
	for dir := filepath.Dir(path); dir != w.state; dir = filepath.Dir(dir) {
		w.stamp(dir)
	}
}

// stamp gives files the world's time.
func (w *world) stamp(paths ...string) {
	w.t.Helper()
	for _, p := range paths {
		if err := os.Chtimes(p, w.now, w.now); err != nil && !errors.Is(err, fs.ErrNotExist) {
			w.t.Fatal(err)
		}
	}
}

// removed are what a report says went, sorted.
func (w *world) removed(r Report) []string {
	var out []string
	for _, d := range r.Decisions {
		if d.Remove {
			out = append(out, string(d.Kind)+" "+d.Name)
		}
	}
	slices.Sort(out)
	return out
}

func (w *world) exists(parts ...string) bool {
	_, err := os.Lstat(filepath.Join(append([]string{w.state}, parts...)...))
	return err == nil
}

// names lists a directory of the state root.
func (w *world) names(dir string) (names []string) {
	all, err := os.ReadDir(filepath.Join(w.state, dir))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		w.t.Fatal(err)
	}
	for _, e := range all {
		names = append(names, e.Name())
	}
	return names
}

// pick is one of a list.
func pick[T any](r *rand.Rand, list []T) T { return list[r.IntN(len(list))] }

// spec is one of a few snapshots: of bases, and of templates of an image.
func (w *world) spec(n int, img *image.Image) snapshot.Spec {
	s := snapshot.Spec{
		Kind: snapshot.KindBase, Shape: vm.Shape{VCPUs: 1 + n%2, MemoryBytes: 256 << 20},
		Kit: vm.Kit{Arch: "amd64", Digest: "sha256:" + strings.Repeat("a", 64), Kernel: "/k", Initramfs: "/i", Scratch: "/s"},
	}
	if img != nil {
		s.Kind = snapshot.KindTemplate
		s.Template = &snapshot.TemplateSpec{
			Namespace: "ns", Name: fmt.Sprintf("t%d", n), Revision: "r", Images: []snapshot.TemplateImage{{Ref: img.Ref, Digest: img.Digest, Path: img.DiskPath}},
		}
	}
	return s
}
