// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package image

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/vk-firkin/vk-firkin/test/images"
	"github.com/vk-firkin/vk-firkin/vm/durable"
	"github.com/vk-firkin/vk-firkin/vm/durable/durabletest"
)

// TestFaultAtEveryStep fails each operation on the disk in turn, once, for good, or with the
// process or the host, in opening, pulling, pinning, listing and collecting; then opens the
// store on what the disk kept. What is an image there is the one that was pulled, with all
// that was in it; nothing else is left, and all goes on.
func TestFaultAtEveryStep(t *testing.T) {
	r := testRegistry(t, images.RegistryOptions{})
	old := push(t, r, "old", makeImage(t, layer(t, images.File("o", 0o644, "old"))))
	ref := push(t, r, "app", makeImage(t, layer(t, images.File("a", 0o644, "1")), layer(t, images.File("b", 0o644, "2"))))
	options := func(fsys durable.FS) Options {
		opts := testOptions(r)
		opts.FS, opts.SlotBytes = fsys, minSlotBytes // which the disk that breaks copies, to forget it
		return opts
	}
	host := unsyncedFS{durable.Host}

	// What is there before, and what there is to be.
	template := t.TempDir()
	content := map[string][]byte{} // of disks, by digest
	s := openStore(t, template, options(host))
	var digest string
	for _, name := range []string{ref, old} {
		img, err := s.Pull(t.Context(), name, PullOptions{})
		if err != nil {
			t.Fatal(err)
		}
		if content[img.Digest], err = os.ReadFile(img.DiskPath); err != nil {
			t.Fatal(err)
		}
		if name == ref {
			digest = img.Digest
		}
		img.Release()
		if name == ref {
			if _, err := s.GC(t.Context(), GCOptions{}); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	prepare := func(t *testing.T, dir string) { // files never change, so links are copies
		err := filepath.WalkDir(template, func(p string, d fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			to := filepath.Join(dir, strings.TrimPrefix(p, template))
			if d.IsDir() {
				return os.MkdirAll(to, 0o700)
			}
			return os.Link(p, to)
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	// The scenario of one run. It may fail anywhere.
	scenario := func(t *testing.T, dir string, disk *durabletest.FS) error {
		s, err := Open(dir, options(disk))
		if err != nil {
			return err
		}
		defer func() { _ = s.Close() }()
		img, err := s.Pull(t.Context(), ref, PullOptions{Policy: PullAlways})
		if err != nil {
			return err
		}
		if got, err := os.ReadFile(img.DiskPath); err != nil || !bytes.Equal(got, content[digest]) {
			t.Errorf("pull succeeded and left another disk, %v", err)
		}
		img.Release()
		if _, err := s.GC(t.Context(), GCOptions{}); err != nil {
			return err
		}
		img, err = s.Pull(t.Context(), ref, PullOptions{})
		img.Release()
		return err
	}
	modes := append([]durabletest.Mode{durabletest.EIO, durabletest.EIORead, durabletest.Full}, durabletest.Crashes...)
	failures := 0
	durabletest.Every(t, modes, 30, func(t *testing.T, disk *durabletest.FS, dir string) {
		prepare(t, dir)
		err := scenario(t, dir, disk)
		if err != nil {
			failures++
			noSpace := errors.Is(err, syscall.ENOSPC)
			if hasKind(err) && (!noSpace || !errors.Is(err, ErrNoSpace)) {
				t.Errorf("wrong kind: %v", err)
			}
			if !noSpace && !errors.Is(err, syscall.EIO) && !errors.Is(err, durabletest.ErrCrashed) {
				t.Errorf("the cause is lost: %v", err)
			}
		}
		disk.Restart(t)
		s, err := Open(dir, options(host))
		if err != nil {
			t.Fatalf("reopen: %v", err)
		}
		all, err := s.List()
		if err != nil {
			t.Fatal(err)
		}
		for _, i := range all {
			got, err := os.ReadFile(filepath.Join(dir, strings.TrimPrefix(i.Digest, digestPrefix), diskName))
			if err != nil || !bytes.Equal(got, content[i.Digest]) {
				t.Errorf("image %s is not what was pulled, %v", i.Digest, err)
			}
		}
		wantClean(t, dir, len(all))
		img, err := s.Pull(t.Context(), ref, PullOptions{Policy: PullAlways})
		if err != nil || img.Digest != digest {
			t.Fatalf("pull again: %v", err)
		}
		img.Release()
		if _, err := s.GC(t.Context(), GCOptions{}); err != nil {
			t.Error(err)
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
		wantClean(t, dir, 0)
	})
	if failures < 100 {
		t.Errorf("only %d faults were noticed", failures)
	}
}

func TestDiskFull(t *testing.T) {
	r := testRegistry(t, images.RegistryOptions{})
	ref := push(t, r, "app", makeImage(t, layer(t, images.File("a", 0o644, strings.Repeat("x", 1<<20)))))
	for _, tt := range []struct {
		name      string
		free, min int64
		full      bool
		want      error
	}{
		{"exactly enough", 1<<20 + 100, 100, false, nil},
		{"floor not kept unpacked", 1<<20 + 99, 100, false, ErrNoSpace},
		{"floor not kept compressed", 100, 100, false, ErrNoSpace},
		{"the disk says so", 1 << 40, 0, true, ErrNoSpace},
	} {
		t.Run(tt.name, func(t *testing.T) {
			opts := testOptions(r)
			opts.MinFreeBytes = tt.min
			opts.FreeBytes = func() (int64, error) { return tt.free, nil }
			dir := t.TempDir()
			if tt.full {
				opts.FS = fullFS{durable.Host}
			}
			s := openStore(t, dir, opts)
			img, err := s.Pull(t.Context(), ref, PullOptions{})
			img.Release()
			if !errors.Is(err, tt.want) {
				t.Errorf("got %v, want %v", err, tt.want)
			}
			n := 0
			if tt.want == nil {
				n = 1
			}
			wantClean(t, dir, n)
		})
	}
}

// fullFS has room for names, not for content.
type fullFS struct{ durable.FS }

func (f fullFS) OpenFile(path string, flag int) (durable.File, error) {
	in, err := f.FS.OpenFile(path, flag)
	if err != nil {
		return nil, err
	}
	return fullFile{in}, nil
}

type fullFile struct{ durable.File }

func (fullFile) Write([]byte) (int, error) { return 0, syscall.ENOSPC }

// TestOpenSweeps: what crashes and other versions leave does not survive Open,
// and a pull under way does.
func TestOpenSweeps(t *testing.T) {
	r := testRegistry(t, images.RegistryOptions{})
	ref := push(t, r, "app", small(t, "amd64"))
	fresh := func() (string, string) {
		dir := t.TempDir()
		s := openStore(t, dir, testOptions(r))
		img, err := s.Pull(t.Context(), ref, PullOptions{})
		if err != nil {
			t.Fatal(err)
		}
		img.Release()
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		return dir, filepath.Dir(img.DiskPath)
	}
	write := func(path, content string) {
		t.Helper()
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, tt := range []struct {
		name   string
		damage func(dir, image string)
		images int
	}{
		{"nothing", func(string, string) {}, 1},
		{"a pull that died", func(dir, _ string) { write(dir+"/.tmp-x/layer", "half"); write(dir+"/.tmp-x/owner.lock", "") }, 1},
		{"a removal that died", func(dir, _ string) { write(dir+"/.trash-x/disk.ext4", "") }, 1},
		{"a reference half written", func(dir, _ string) { write(dir+"/refs/.tmp-x", "{"); write(dir+"/refs/bad.json", "{") }, 1},
		{"no record", func(_, image string) { _ = os.Remove(image + "/image.json") }, 0},
		{"no disk", func(_, image string) { _ = os.Remove(image + "/disk.ext4") }, 0},
		{"truncated disk", func(_, image string) { _ = os.Truncate(image+"/disk.ext4", testSlot-1) }, 0},
		{"truncated record", func(_, image string) { _ = os.Truncate(image+"/image.json", 20) }, 0},
		{"huge record", func(_, image string) { _ = os.Truncate(image+"/image.json", maxRecordBytes+1) }, 0},
		{"moved", func(dir, image string) { _ = os.Rename(image, dir+"/"+strings.Repeat("a", 64)) }, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir, image := fresh()
			tt.damage(dir, image)
			s := openStore(t, dir, testOptions(r))
			wantClean(t, dir, tt.images)
			img, err := s.Pull(t.Context(), ref, PullOptions{})
			if err != nil {
				t.Fatal(err)
			}
			img.Release()
			wantClean(t, dir, 1)
		})
	}
	t.Run("another slot size", func(t *testing.T) {
		dir, _ := fresh()
		opts := testOptions(r)
		opts.SlotBytes *= 2
		img, err := openStore(t, dir, opts).Pull(t.Context(), ref, PullOptions{})
		if err != nil {
			t.Fatal(err)
		}
		defer img.Release()
		if st, err := os.Stat(img.DiskPath); err != nil || st.Size() != 2*testSlot {
			t.Errorf("disk %v, %v", st, err)
		}
	})
	t.Run("another architecture's stay", func(t *testing.T) {
		dir, _ := fresh()
		opts := testOptions(r)
		opts.Arch = "arm64"
		if l, err := openStore(t, dir, opts).List(); err != nil || len(l) != 0 {
			t.Errorf("list: %v, %v", l, err)
		}
		wantClean(t, dir, 1)
	})
	t.Run("a pull under way stays", func(t *testing.T) {
		dir, _ := fresh()
		s := openStore(t, dir, testOptions(r))
		tmp, done, err := s.tempDir()
		if err != nil {
			t.Fatal(err)
		}
		openStore(t, dir, testOptions(r))
		if _, err := os.Stat(tmp); err != nil {
			t.Errorf("a pull's directory was removed under it: %v", err)
		}
		done()
		wantClean(t, dir, 1)
	})
}

func TestOpenOptions(t *testing.T) {
	for _, o := range []Options{{}, {SlotBytes: 1000}, {SlotBytes: minSlotBytes + 1}, {SlotBytes: testSlot, MinFreeBytes: -1}, {SlotBytes: testSlot, ParallelPulls: -1}} {
		if _, err := Open(t.TempDir(), o); !errors.Is(err, ErrInvalidOptions) {
			t.Errorf("%+v: %v", o, err)
		}
	}
	if _, err := Open("", Options{SlotBytes: testSlot}); !errors.Is(err, ErrInvalidOptions) {
		t.Errorf("no directory: %v", err)
	}
}

func TestPinAndGC(t *testing.T) {
	r := testRegistry(t, images.RegistryOptions{})
	now := time.Unix(1700000000, 0)
	opts := testOptions(r)
	opts.Now = func() time.Time { return now }
	dir := t.TempDir()
	s := openStore(t, dir, opts)
	pull := func(name string) *Image {
		t.Helper()
		img, err := s.Pull(t.Context(), push(t, r, name, makeImage(t, layer(t, images.File(name, 0o644, name)))), PullOptions{})
		if err != nil {
			t.Fatal(err)
		}
		now = now.Add(time.Hour)
		return img
	}
	a, b, c := pull("a"), pull("b"), pull("c")
	gc := func(s *Store, o GCOptions, want ...*Image) {
		t.Helper()
		report, err := s.GC(t.Context(), o)
		if err != nil {
			t.Error(err)
		}
		var got, digests []string
		for _, d := range report.Decisions {
			if d.Remove {
				got = append(got, d.Info.Digest)
			}
		}
		for _, i := range want {
			digests = append(digests, i.Digest)
		}
		if d := cmp.Diff(digests, got); d != "" {
			t.Error(d)
		}
	}
	all := GCOptions{}
	gc(s, all)
	a.Release()
	a.Release() // twice is once
	now = now.Add(time.Hour)
	b.Release()
	gc(s, GCOptions{Grace: 2 * time.Hour})
	gc(s, GCOptions{DryRun: true}, a, b)
	gc(s, GCOptions{Keep: func() (map[string]string, error) {
		return map[string]string{a.Digest: "a test", b.Digest: "a test"}, nil
	}})
	gc(s, GCOptions{Only: []string{}})
	gc(s, GCOptions{Only: []string{a.Digest, c.Digest}}, a)
	if _, err := os.Stat(a.DiskPath); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the disk of a is still there: %v", err)
	}
	wantClean(t, dir, 2)
	if refs, err := os.ReadDir(filepath.Join(dir, refsName)); err != nil || len(refs) != 2 {
		t.Errorf("%d references left, %v", len(refs), err)
	}
	if _, err := s.Pin(a.Digest, "pod"); !errors.Is(err, ErrNotFound) {
		t.Errorf("pin of a removed image: %v", err)
	}
	if _, err := s.Pin("sha256:x", "pod"); !errors.Is(err, ErrInvalidReference) {
		t.Errorf("pin of no digest: %v", err)
	}

	// An owner's pin counts once, and it, too, keeps the image.
	c.Release()
	p, err := s.Pin(c.Digest, "pod-1")
	if err != nil || p.DiskPath != c.DiskPath || p.Config.Cmd[0] != "/bin/sh" {
		t.Fatalf("pin: %+v, %v", p, err)
	}
	if _, err := s.Pin(c.Digest, "pod-1"); err != nil {
		t.Fatal(err)
	}
	now = now.Add(24 * time.Hour)
	gc(s, GCOptions{Grace: time.Hour}, b)

	// Another process, here another store, must not remove it either.
	other := openStore(t, dir, opts)
	gc(other, all)
	if l, err := other.List(); err != nil || len(l) != 1 || l[0].Refs[0] != r.Addr()+"/c:latest" {
		t.Errorf("list of the other: %+v, %v", l, err)
	}
	s.Unpin(c.Digest, "pod-1")
	s.Unpin(c.Digest, "pod-1")
	gc(other, all, c)
	// The first store notices.
	if _, err := s.Pin(c.Digest, "pod-2"); !errors.Is(err, ErrNotFound) {
		t.Errorf("pin of an image that the other removed: %v", err)
	}
	wantClean(t, dir, 0)
	again, err := s.Pull(t.Context(), r.Addr()+"/c", PullOptions{})
	again.Release()
	if err != nil || again.Digest != c.Digest {
		t.Errorf("pull after removal: %v", err)
	}
}

// TestPullsAndGCAtOnce: whoever holds an image has its disk.
func TestPullsAndGCAtOnce(t *testing.T) {
	r := testRegistry(t, images.RegistryOptions{})
	var refs []string
	for i := range 3 {
		refs = append(refs, push(t, r, fmt.Sprint("app", i), makeImage(t, layer(t, images.File(fmt.Sprint(i), 0o644, "x")))))
	}
	dir := t.TempDir()
	stores := []*Store{openStore(t, dir, testOptions(r)), openStore(t, dir, testOptions(r))}
	var wg sync.WaitGroup
	for i := range 6 {
		wg.Go(func() {
			for n := range 8 {
				img, err := stores[i%2].Pull(t.Context(), refs[(i+n)%3], PullOptions{})
				if err != nil {
					t.Error(err)
					return
				}
				if _, err := os.Stat(img.DiskPath); err != nil {
					t.Errorf("a held image: %v", err)
				}
				img.Release()
			}
		})
	}
	for i := range 2 {
		wg.Go(func() {
			for range 20 {
				if _, err := stores[i].GC(t.Context(), GCOptions{}); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	for _, s := range stores {
		if _, err := s.GC(t.Context(), GCOptions{}); err != nil {
			t.Error(err)
		}
	}
	wantClean(t, dir, 0)
}

func TestHostileImages(t *testing.T) {
	r := testRegistry(t, images.RegistryOptions{})
	huge, err := images.HugeManifest("amd64", maxManifestBytes)
	if err != nil {
		t.Fatal(err)
	}
	junk, err := images.RawLayer(bytes.Repeat([]byte("junk"), 1000))
	if err != nil {
		t.Fatal(err)
	}
	layers := makeImage(t, layer(t), layer(t), layer(t))
	opts := testOptions(r)
	opts.Limits = Limits{Layers: 2, Bytes: 1 << 20}
	dir := t.TempDir()
	s := openStore(t, dir, opts)
	for name, ref := range map[string]string{
		"huge manifest": push(t, r, "huge", huge),
		"junk layer":    push(t, r, "junk", makeImage(t, junk)),
		"many layers":   push(t, r, "layers", layers),
		"climbs out":    push(t, r, "climb", makeImage(t, layer(t, images.File("../../x", 0o644, "")))),
		"bomb":          push(t, r, "bomb", makeImage(t, layer(t, images.File("x", 0o644, strings.Repeat("\x00", 2<<20))))),
	} {
		if _, err := s.Pull(t.Context(), ref, PullOptions{}); !errors.Is(err, ErrCorrupt) {
			t.Errorf("%s: %v, want ErrCorrupt", name, err)
		}
	}
	wantClean(t, dir, 0)
}

// TestSlowRegistry: slow is not stalled.
func TestSlowRegistry(t *testing.T) {
	r := testRegistry(t, images.RegistryOptions{})
	ref := push(t, r, "app", small(t, "amd64"))
	opts := testOptions(r)
	opts.Timeouts.Stall = 5 * time.Second
	r.SetFault(images.OnBlobs(images.Action{BytesPerSecond: 2000}))
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	img, err := openStore(t, t.TempDir(), opts).Pull(ctx, ref, PullOptions{})
	img.Release()
	if err != nil {
		t.Error(err)
	}
	if n := r.Count(http.MethodGet, "/blobs/"); n != 2 {
		t.Errorf("%d blobs were fetched", n)
	}
}
