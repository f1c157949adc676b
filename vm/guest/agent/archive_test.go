// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/vk-firkin/vk-firkin/vm/guest"
	"github.com/vk-firkin/vk-firkin/vm/guest/agentv1"
)

func archive(t testing.TB, entries ...tar.Header) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, h := range entries {
		data := ""
		if h.Typeflag == tar.TypeReg && h.Size == 0 {
			data = "data of " + h.Name
			h.Size = int64(len(data))
		}
		h.Uid, h.Gid = os.Getuid(), os.Getgid()
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write([]byte(data)); err != nil {
			t.Fatal(err)
		}
	}
	_ = w.Flush() // an entry whose data are missing is what some tests want
	return b.Bytes()
}

func TestUnpack(t *testing.T) {
	when := time.Unix(1700000000, 0)
	data := archive(t,
		tar.Header{Typeflag: tar.TypeDir, Name: "d/", Mode: 0o500, ModTime: when},
		tar.Header{Typeflag: tar.TypeReg, Name: "d/file", Mode: 0o4640, ModTime: when},
		tar.Header{Typeflag: tar.TypeReg, Name: "deep/er/file", Mode: 0o600},
		tar.Header{Typeflag: tar.TypeSymlink, Name: "d/away", Linkname: "/etc/passwd"},
		tar.Header{Typeflag: tar.TypeSymlink, Name: "d/up", Linkname: "../.."},
	)
	dir := t.TempDir()
	bytes, files, err := unpackInto(dir, strings.NewReader(string(data)))
	if err != nil {
		t.Fatal(err)
	}
	if bytes != int64(len("data of d/file")+len("data of deep/er/file")) || files != 5 {
		t.Errorf("%d bytes in %d files", bytes, files)
	}
	if got, err := os.ReadFile(filepath.Join(dir, "d/file")); err != nil || string(got) != "data of d/file" {
		t.Errorf("file holds %q, %v", got, err)
	}
	for name, mode := range map[string]fs.FileMode{"d": fs.ModeDir | 0o500, "d/file": 0o640, "d/away": fs.ModeSymlink | 0o777, "deep/er": fs.ModeDir | 0o755} {
		st, err := os.Lstat(filepath.Join(dir, name))
		if err != nil || st.Mode() != mode {
			t.Errorf("%s is %v, %v", name, st.Mode(), err)
		}
		if strings.HasPrefix(name, "d/f") || name == "d" {
			if !st.ModTime().Equal(when) {
				t.Errorf("%s is of %s", name, st.ModTime())
			}
		}
	}
}

// What leaves the volume, is no file or is too much is refused, and nothing of it stays.
func TestUnpackRefuses(t *testing.T) {
	many := make([]tar.Header, guest.MaxArchiveEntries+1)
	for i := range many {
		many[i] = tar.Header{Typeflag: tar.TypeSymlink, Name: fmt.Sprint(i), Linkname: "x"}
	}
	whole := archive(t, tar.Header{Typeflag: tar.TypeReg, Name: "f"})
	for name, data := range map[string][]byte{
		"parent":           archive(t, tar.Header{Typeflag: tar.TypeReg, Name: "../f"}),
		"absolute":         archive(t, tar.Header{Typeflag: tar.TypeReg, Name: "/f"}),
		"through a link":   archive(t, tar.Header{Typeflag: tar.TypeSymlink, Name: "l", Linkname: "/tmp"}, tar.Header{Typeflag: tar.TypeReg, Name: "l/f"}),
		"through two":      archive(t, tar.Header{Typeflag: tar.TypeSymlink, Name: "l", Linkname: ".."}, tar.Header{Typeflag: tar.TypeSymlink, Name: "m", Linkname: "l"}, tar.Header{Typeflag: tar.TypeReg, Name: "m/f"}),
		"onto a link":      archive(t, tar.Header{Typeflag: tar.TypeSymlink, Name: "l", Linkname: "/tmp/x"}, tar.Header{Typeflag: tar.TypeReg, Name: "l"}),
		"directory link":   archive(t, tar.Header{Typeflag: tar.TypeSymlink, Name: "l", Linkname: "/tmp"}, tar.Header{Typeflag: tar.TypeDir, Name: "l"}),
		"twice":            archive(t, tar.Header{Typeflag: tar.TypeReg, Name: "f"}, tar.Header{Typeflag: tar.TypeReg, Name: "f"}),
		"device":           archive(t, tar.Header{Typeflag: tar.TypeChar, Name: "d", Devmajor: 1, Devminor: 3}),
		"block device":     archive(t, tar.Header{Typeflag: tar.TypeBlock, Name: "d"}),
		"pipe":             archive(t, tar.Header{Typeflag: tar.TypeFifo, Name: "d"}),
		"hard link":        archive(t, tar.Header{Typeflag: tar.TypeReg, Name: "f"}, tar.Header{Typeflag: tar.TypeLink, Name: "h", Linkname: "f"}),
		"large":            archive(t, tar.Header{Typeflag: tar.TypeReg, Name: "ok"}, tar.Header{Typeflag: tar.TypeReg, Name: "f", Size: guest.MaxArchiveBytes}),
		"cut off":          whole[:len(whole)-512],
		"cut in a header":  whole[:100],
		"no archive":       bytes.Repeat([]byte("x"), 2048),
		"many":             archive(t, many...),
		"data after it":    append(append(archive(t), make([]byte, 1024)...), make([]byte, maxArchivePadding+1024)...),
		"endless dot dots": archive(t, tar.Header{Typeflag: tar.TypeDir, Name: "a/../../b"}),
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			if _, _, err := unpackInto(dir, bytes.NewReader(data)); !errors.Is(err, errArchive) {
				t.Errorf("unpack: %v", err)
			}
			if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
				t.Errorf("%v is left, %v", left, err)
			}
		})
	}
}

func FuzzUnpack(f *testing.F) {
	f.Add(archive(f, tar.Header{Typeflag: tar.TypeDir, Name: "d/", Mode: 0o755}, tar.Header{Typeflag: tar.TypeReg, Name: "d/f"}))
	f.Add(archive(f, tar.Header{Typeflag: tar.TypeSymlink, Name: "l", Linkname: "../out"}, tar.Header{Typeflag: tar.TypeReg, Name: "l/f"}))
	f.Add(archive(f, tar.Header{Typeflag: tar.TypeReg, Name: "f", Format: tar.FormatPAX, PAXRecords: map[string]string{"X.y": "z"}}))
	base := f.TempDir()
	f.Fuzz(func(t *testing.T, data []byte) {
		outside, err := os.MkdirTemp(base, "")
		if err != nil {
			t.Fatal(err)
		}
		defer os.RemoveAll(outside)
		dir := filepath.Join(outside, "volume")
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		_, _, err = unpackInto(dir, bytes.NewReader(data))
		if left, rerr := os.ReadDir(outside); rerr != nil || len(left) != 1 {
			t.Fatalf("outside are %v, %v", left, rerr)
		}
		if left, rerr := os.ReadDir(dir); err != nil && (rerr != nil || len(left) > 0) {
			t.Fatalf("after %v there is %v, %v", err, left, rerr)
		}
	})
}

// FuzzWriteFiles writes what a host could send: what is checked can be written, and stays
// in the volume.
func FuzzWriteFiles(f *testing.F) {
	f.Add("a", "dir/b", []byte("data"), uint32(0o644), int64(-1))
	f.Add("../a", "..data", []byte{}, uint32(0o7777), int64(1))
	f.Add("a/b", "a", []byte("x"), uint32(0), int64(0))
	base := f.TempDir()
	f.Fuzz(func(t *testing.T, a, b string, data []byte, mode uint32, fsGroup int64) {
		files := []*agentv1.File{{Path: a, Data: data, Mode: mode}, {Path: b, Mode: 0o400}}
		if checkFiles(files) != nil {
			return
		}
		outside, err := os.MkdirTemp(base, "")
		if err != nil {
			t.Fatal(err)
		}
		defer os.RemoveAll(outside)
		dir := filepath.Join(outside, "volume")
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		if fsGroup >= 0 {
			fsGroup = int64(os.Getgid())
		}
		if _, err := writeFiles(dir, fsGroup, files); err != nil {
			if len(a) > 200 || len(b) > 200 {
				return // the file system's own limit of names
			}
			t.Fatalf("%q, %q: %v", a, b, err)
		}
		if left, err := os.ReadDir(outside); err != nil || len(left) != 1 {
			t.Fatalf("outside are %v, %v", left, err)
		}
		if got, err := os.ReadFile(filepath.Join(dir, a)); err != nil || !bytes.Equal(got, data) {
			t.Fatalf("%q holds %q, %v", a, got, err)
		}
		if changed, err := writeFiles(dir, fsGroup, files); err != nil || changed {
			t.Fatalf("the same files again: changed %v, %v", changed, err)
		}
	})
}

func TestUsage(t *testing.T) {
	dir := t.TempDir()
	if b, n := DiskUsage(dir, maxUsageWalk); b != 0 || n != 0 {
		t.Errorf("an empty volume has %d bytes, %d inodes", b, n)
	}
	data := bytes.Repeat([]byte("x"), 1<<20)
	if err := errors.Join(os.MkdirAll(filepath.Join(dir, "a/b"), 0o700), os.WriteFile(filepath.Join(dir, "a/b/f"), data, 0o600),
		os.Link(filepath.Join(dir, "a/b/f"), filepath.Join(dir, "again")), os.Symlink("/", filepath.Join(dir, "root")),
		os.Mkdir(filepath.Join(dir, "\xff"), 0o700), os.WriteFile(filepath.Join(dir, "\xff/f"), data, 0o600)); err != nil {
		t.Fatal(err)
	}
	b, n := DiskUsage(dir, maxUsageWalk)
	if b < 2<<20 || b > 2<<20+64<<10 || n != 6 {
		t.Errorf("%d bytes, %d inodes; want about 2 MiB in 6", b, n)
	}
	if b, n := DiskUsage(filepath.Join(dir, "none"), maxUsageWalk); b != 0 || n != 0 {
		t.Errorf("what does not exist has %d bytes, %d inodes", b, n)
	}
}
