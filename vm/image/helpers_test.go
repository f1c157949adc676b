// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package image

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/vk-firkin/vk-firkin/test/images"
	"github.com/vk-firkin/vk-firkin/vm/durable"
)

const testSlot = 64 << 20

func testRegistry(t testing.TB, opts images.RegistryOptions) *images.Registry {
	t.Helper()
	r, err := images.StartRegistry(opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = r.Close() })
	return r
}

func testOptions(r *images.Registry) Options {
	o := Options{SlotBytes: testSlot, Arch: "amd64", FS: unsyncedFS{durable.Host}, retryDelay: time.Millisecond}
	if r != nil {
		o.InsecureRegistries = []string{r.Addr()}
	}
	return o
}

// unsyncedFS is the real file system without waiting for the disk, which tests
// that make hundreds of images do not need.
type unsyncedFS struct{ durable.FS }

func (unsyncedFS) SyncDir(string) error { return nil }

func (u unsyncedFS) OpenFile(path string, flag int) (durable.File, error) {
	f, err := u.FS.OpenFile(path, flag)
	if err != nil {
		return nil, err
	}
	return unsyncedFile{f}, nil
}

type unsyncedFile struct{ durable.File }

func (unsyncedFile) Sync() error { return nil }

func openStore(t testing.TB, dir string, opts Options) *Store {
	t.Helper()
	s, err := Open(dir, opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

func push(t testing.TB, r *images.Registry, name string, img v1.Image) string {
	t.Helper()
	ref, err := r.Push(name, img)
	if err != nil {
		t.Fatal(err)
	}
	return ref
}

func layer(t testing.TB, entries ...images.Entry) v1.Layer {
	t.Helper()
	l, err := images.Layer(entries...)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func makeImage(t testing.TB, layers ...v1.Layer) v1.Image {
	t.Helper()
	img, err := images.Image("amd64", v1.Config{Cmd: []string{"/bin/sh"}}, layers...)
	if err != nil {
		t.Fatal(err)
	}
	return img
}

func small(t testing.TB, arch string) v1.Image {
	t.Helper()
	img, err := images.Small(arch)
	if err != nil {
		t.Fatal(err)
	}
	return img
}

// wantClean fails the test unless the store's directory holds exactly n images
// and no leftovers.
func wantClean(t testing.TB, dir string, n int) {
	t.Helper()
	all, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	found := 0
	for _, d := range all {
		switch {
		case validHex(d.Name()):
			found++
			in, err := os.ReadDir(filepath.Join(dir, d.Name()))
			if err != nil || len(in) != 2 {
				t.Errorf("image %s holds %v (%v), want a disk and a record", d.Name(), in, err)
			}
		case d.Name() != lockName && d.Name() != refsName:
			t.Errorf("leftover %s", d.Name())
		}
	}
	refs, err := os.ReadDir(filepath.Join(dir, refsName))
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range refs {
		if filepath.Ext(d.Name()) != ".json" {
			t.Errorf("leftover %s", d.Name())
		}
	}
	if found != n {
		t.Errorf("%d images in the store, want %d", found, n)
	}
}
