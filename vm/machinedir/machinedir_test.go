// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package machinedir

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/vk-firkin/vk-firkin/vm"
	"github.com/vk-firkin/vk-firkin/vm/durable"
)

type record struct{ ID string }

func TestWriteJSONReplaces(t *testing.T) {
	dir := t.TempDir()
	for _, want := range []string{"first", "second"} {
		if err := WriteJSON(durable.Host, dir, "x.json", record{ID: want}); err != nil {
			t.Fatal(err)
		}
		var got record
		if err := ReadJSON(durable.Host, dir, "x.json", &got); err != nil || got.ID != want {
			t.Errorf("read %+v, %v, want id %q", got, err, want)
		}
	}
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 1 {
		t.Errorf("directory has %v, %v, want the file alone", entries, err)
	}
}

func TestReadJSONIsBounded(t *testing.T) {
	dir := t.TempDir()
	big, err := json.Marshal(record{ID: strings.Repeat("x", MaxRecordBytes)})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "x.json"), big, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := ReadJSON(durable.Host, dir, "x.json", &record{}); err == nil || !strings.Contains(err.Error(), "more than") {
		t.Errorf("error is %v, want one about the size", err)
	}
}

func TestNoSpace(t *testing.T) {
	for err, want := range map[error]bool{
		syscall.ENOSPC: true, syscall.EDQUOT: true, syscall.ENOMEM: true, syscall.EIO: false,
	} {
		got := NoSpace(fmt.Errorf("write: %w", err))
		if errors.Is(got, vm.ErrNoSpace) != want || !errors.Is(got, err) {
			t.Errorf("%v became %v", err, got)
		}
	}
	if NoSpace(nil) != nil {
		t.Error("nil became an error")
	}
}

func TestCopySparse(t *testing.T) {
	dir := t.TempDir()
	from, to := filepath.Join(dir, "from"), filepath.Join(dir, "to")
	const size = 64 << 20
	if err := SparseFile(from, size); err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(from, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	places := map[int64][]byte{0: []byte("begin"), 10<<20 + 123: bytes.Repeat([]byte("x"), 9999), size - 4: []byte("end.")}
	for at, data := range places {
		if _, err := f.WriteAt(data, at); err != nil {
			t.Fatal(err)
		}
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	if err := CopySparse(from, to); err != nil {
		t.Fatal(err)
	}
	want, err := os.ReadFile(from)
	if err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(to)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Error("the copy differs")
	}
	info, err := os.Stat(to)
	if err != nil {
		t.Fatal(err)
	}
	if n := AllocatedBytes(info); n > size/2 {
		t.Errorf("the copy of a file with %d bytes of data occupies %d", 10008, n)
	}
	if err := CopySparse(from, to); !errors.Is(err, os.ErrExist) {
		t.Errorf("copy over a file: %v, want ErrExist", err)
	}
}

func TestReadTail(t *testing.T) {
	path := filepath.Join(t.TempDir(), "x")
	if got, err := ReadTail(path, 10); err != nil || len(got) != 0 {
		t.Errorf("of no file: %q, %v", got, err)
	}
	if err := os.WriteFile(path, []byte("0123456789abcdef"), 0o600); err != nil {
		t.Fatal(err)
	}
	for limit, want := range map[int64]string{4: "cdef", 16: "0123456789abcdef", 100: "0123456789abcdef"} {
		if got, err := ReadTail(path, limit); err != nil || string(got) != want {
			t.Errorf("last %d bytes: %q, %v, want %q", limit, got, err, want)
		}
	}
}

// Of many that write once, one does, and its file is whole at any time.
func TestWriteJSONOnce(t *testing.T) {
	dir := t.TempDir()
	const writers = 20
	results := make(chan error, writers)
	begin := make(chan struct{})
	for i := range writers {
		go func() {
			<-begin
			err := WriteJSONOnce(durable.Host, dir, "x.json", record{ID: strings.Repeat(fmt.Sprint(i%10), 10_000)})
			var got record
			if rerr := ReadJSON(durable.Host, dir, "x.json", &got); rerr != nil || strings.Count(got.ID, got.ID[:1]) != 10_000 {
				err = fmt.Errorf("read %d bytes: %w", len(got.ID), errors.Join(rerr, errors.New("torn")))
			}
			results <- err
		}()
	}
	close(begin)
	wrote := 0
	for range writers {
		switch err := <-results; {
		case err == nil:
			wrote++
		case !errors.Is(err, fs.ErrExist):
			t.Error(err)
		}
	}
	if wrote != 1 {
		t.Errorf("%d have written it, want 1", wrote)
	}
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 1 {
		t.Errorf("directory has %v, %v, want the file alone", entries, err)
	}
}

// A file that is reached by a link is copied, and not the link: what is written to the
// copy would be written to the file.
func TestCopySparseFollowsLinks(t *testing.T) {
	dir := t.TempDir()
	file, link, to := filepath.Join(dir, "file"), filepath.Join(dir, "link"), filepath.Join(dir, "copy")
	if err := errors.Join(os.WriteFile(file, []byte("content"), 0o400), os.Symlink(file, link)); err != nil {
		t.Fatal(err)
	}
	if err := CopySparse(link, to); err != nil {
		t.Fatal(err)
	}
	info, err := os.Lstat(to)
	if err != nil || info.Mode() != 0o600 {
		t.Errorf("the copy is %v, %v, want a file of mode 0600", info.Mode(), err)
	}
	if err := os.WriteFile(to, []byte("written"), 0o600); err != nil {
		t.Fatal(err)
	}
	if text, err := os.ReadFile(file); err != nil || string(text) != "content" {
		t.Errorf("the file has %q, %v", text, err)
	}
}
