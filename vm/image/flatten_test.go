// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package image

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/klauspost/compress/zstd"

	"github.com/vk-firkin/vk-firkin/test/images"
)

// plain serves archives as layers.
func plain(archives ...[]byte) []opener {
	var out []opener
	for _, a := range archives {
		out = append(out, func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(a)), nil })
	}
	return out
}

func archive(t testing.TB, entries ...images.Entry) []byte {
	t.Helper()
	b, err := images.Tar(entries...)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// flat flattens layers and describes each name of the result in a few words.
func flat(ctx context.Context, limits Limits, layers []opener) (map[string]string, error) {
	t, err := index(ctx, layers, limits.withDefaults(testSlot))
	if err != nil {
		return nil, err
	}
	var b bytes.Buffer
	if err := flatten(ctx, t, layers, &b); err != nil {
		return nil, err
	}
	out := map[string]string{}
	tr := tar.NewReader(&b)
	for {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return out, nil
		}
		if err != nil {
			return nil, err
		}
		c, err := io.ReadAll(tr)
		if err != nil {
			return nil, err
		}
		var d string
		switch h.Typeflag {
		case tar.TypeDir:
			d = fmt.Sprintf("dir %o", h.Mode)
		case tar.TypeReg:
			d = fmt.Sprintf("file %o %s", h.Mode, c)
		case tar.TypeSymlink:
			d = "-> " + h.Linkname
		case tar.TypeLink:
			if _, ok := out[h.Linkname]; !ok {
				return nil, fmt.Errorf("link %s before its target %s", h.Name, h.Linkname)
			}
			d = "= " + h.Linkname
		default:
			d = fmt.Sprintf("%c %d:%d", h.Typeflag, h.Devmajor, h.Devminor)
		}
		if _, twice := out[h.Name]; twice {
			return nil, fmt.Errorf("%s comes twice", h.Name)
		}
		out[h.Name] = d
	}
}

func device(name string, kind byte, major, minor int64) images.Entry {
	e := images.File(name, 0o600, "")
	e.Typeflag, e.Devmajor, e.Devminor = kind, major, minor
	return e
}

func TestFlatten(t *testing.T) {
	dir, file, sym, hard := images.Dir, images.File, images.Symlink, images.Hardlink
	long := strings.Repeat("n", 255)
	deep := strings.Repeat("dir/", 60) + "file"
	type layers [][]images.Entry
	for _, tt := range []struct {
		name   string
		layers layers
		want   map[string]string // "./" is added
	}{
		{"no layers", nil, map[string]string{}},
		{"empty layer", layers{{}}, map[string]string{}},
		{"parents are made", layers{{file("a/b", 0o644, "x")}}, map[string]string{"a/": "dir 755", "a/b": "file 644 x"}},
		{"a parent described later", layers{{file("a/b", 0o644, "x"), dir("a", 0o700)}}, map[string]string{"a/": "dir 700", "a/b": "file 644 x"}},
		{"names are cleaned", layers{{file("/abs", 0o644, "1"), file("./dot", 0o644, "2"), file("x/../y", 0o644, "3"), file("//two", 0o644, "4")}},
			map[string]string{"abs": "file 644 1", "dot": "file 644 2", "y": "file 644 3", "two": "file 644 4"}},
		{"the upper layer wins", layers{{file("a", 0o644, "old")}, {file("a", 0o600, "new")}}, map[string]string{"a": "file 600 new"}},
		{"the last of a layer wins", layers{{file("a", 0o644, "old"), file("a", 0o600, "newer")}}, map[string]string{"a": "file 600 newer"}},
		{"directories merge", layers{{dir("d", 0o755), file("d/a", 0o644, "1")}, {dir("d", 0o711), file("d/b", 0o644, "2")}},
			map[string]string{"d/": "dir 711", "d/a": "file 644 1", "d/b": "file 644 2"}},
		{"file replaces directory", layers{{file("d/a", 0o644, "1")}, {file("d", 0o644, "2")}}, map[string]string{"d": "file 644 2"}},
		{"directory replaces file", layers{{file("d", 0o644, "1")}, {dir("d", 0o755)}}, map[string]string{"d/": "dir 755"}},
		{"directory replaces symlink", layers{{dir("u", 0o755), sym("d", "u")}, {dir("d", 0o755), file("d/a", 0o644, "1")}},
			map[string]string{"u/": "dir 755", "d/": "dir 755", "d/a": "file 644 1"}},
		{"implied directory hides a lower symlink", layers{{dir("u", 0o755), sym("d", "u")}, {file("d/a", 0o644, "1")}},
			map[string]string{"u/": "dir 755", "d/": "dir 755", "d/a": "file 644 1"}},
		{"a symlink of the same layer is followed", layers{{dir("u", 0o755), sym("d", "/u"), file("d/a", 0o644, "1")}},
			map[string]string{"u/": "dir 755", "d": "-> /u", "u/a": "file 644 1"}},
		{"a symlink is followed inside the root only", layers{{sym("d", "../../../etc"), file("d/a", 0o644, "1")}},
			map[string]string{"etc/": "dir 755", "d": "-> ../../../etc", "etc/a": "file 644 1"}},
		{"whiteout", layers{{file("d/a", 0o644, "1"), file("d/b", 0o644, "2")}, {images.Whiteout("d/", "a")}},
			map[string]string{"d/": "dir 755", "d/b": "file 644 2"}},
		{"whiteout of a directory", layers{{file("d/a", 0o644, "1")}, {images.Whiteout("", "d")}}, map[string]string{}},
		{"whiteout spares its own layer, before", layers{{file("a", 0o644, "1")}, {file("a", 0o644, "2"), images.Whiteout("", "a")}}, map[string]string{"a": "file 644 2"}},
		{"whiteout spares its own layer, after", layers{{file("a", 0o644, "1")}, {images.Whiteout("", "a"), file("a", 0o644, "2")}}, map[string]string{"a": "file 644 2"}},
		{"whiteout of nothing", layers{{images.Whiteout("x/", "a")}}, map[string]string{"x/": "dir 755"}},
		{"whiteout, then a directory anew", layers{{file("d/a", 0o644, "1")}, {images.Whiteout("", "d"), dir("d", 0o755), file("d/b", 0o644, "2")}},
			map[string]string{"d/": "dir 755", "d/b": "file 644 2"}},
		{"whiteout of a directory that this layer put a file into", layers{{file("d/a", 0o644, "1")}, {file("d/b", 0o644, "2"), images.Whiteout("", "d")}},
			map[string]string{"d/": "dir 755", "d/b": "file 644 2"}},
		{"opaque, before and after", layers{{file("d/a", 0o644, "1"), file("d/s/c", 0o644, "1")}, {file("d/b", 0o644, "2"), images.Opaque("d/"), file("d/c", 0o644, "3"), file("d/s/n", 0o644, "4")}},
			map[string]string{"d/": "dir 755", "d/b": "file 644 2", "d/c": "file 644 3", "d/s/": "dir 755", "d/s/n": "file 644 4"}},
		{"opaque root", layers{{file("a", 0o644, "1")}, {images.Opaque("")}, {file("b", 0o644, "2")}}, map[string]string{"b": "file 644 2"}},
		{"hard link in a layer", layers{{file("a", 0o644, "1"), hard("b", "a"), hard("c", "./b")}}, map[string]string{"a": "file 644 1", "b": "= a", "c": "= a"}},
		{"hard link into a lower layer", layers{{file("u/a", 0o644, "1")}, {hard("b", "/u/a")}}, map[string]string{"u/": "dir 755", "b": "file 644 1", "u/a": "= b"}},
		{"hard link whose target is replaced", layers{{file("a", 0o644, "1")}, {hard("b", "a")}, {file("a", 0o644, "2")}}, map[string]string{"a": "file 644 2", "b": "file 644 1"}},
		{"hard link whose target is removed", layers{{file("a", 0o644, "1"), hard("b", "a")}, {images.Whiteout("", "a")}}, map[string]string{"b": "file 644 1"}},
		{"hard link to a symlink", layers{{sym("a", "x"), hard("b", "a")}}, map[string]string{"a": "-> x", "b": "= a"}},
		{"hard link through a symlink", layers{{file("u/a", 0o644, "1"), sym("d", "u"), hard("b", "d/a")}}, map[string]string{"u/": "dir 755", "d": "-> u", "b": "file 644 1", "u/a": "= b"}},
		{"symlinks that leave the root stay", layers{{sym("a", "../../x"), sym("b", "/etc/passwd")}}, map[string]string{"a": "-> ../../x", "b": "-> /etc/passwd"}},
		{"device nodes and FIFOs", layers{{device("c", tar.TypeChar, 1, 3), device("b", tar.TypeBlock, 8, 300), device("f", tar.TypeFifo, 0, 0)}},
			map[string]string{"c": "3 1:3", "b": "4 8:300", "f": "6 0:0"}},
		{"overlay's whiteout is dropped", layers{{device("w", tar.TypeChar, 0, 0)}}, map[string]string{}},
		{"the file system's own directory", layers{{file("lost+found", 0o644, "x")}, {file("a/lost+found", 0o644, "x")}}, map[string]string{"a/": "dir 755", "a/lost+found": "file 644 x"}},
		{"long names", layers{{file(long, 0o644, "1"), file(deep, 0o644, "2"), sym("s", strings.Repeat("t", 4000))}}, nil},
		{"empty file", layers{{file("a", 0o4755, "")}}, map[string]string{"a": "file 4755 "}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var archives [][]byte
			for _, l := range tt.layers {
				archives = append(archives, archive(t, l...))
			}
			got, err := flat(t.Context(), Limits{}, plain(archives...))
			if err != nil {
				t.Fatal(err)
			}
			if tt.want == nil { // long names
				if got[long] != "file 644 1" || got[deep] != "file 644 2" || len(got["s"]) != 4003 {
					t.Errorf("long names are lost")
				}
				return
			}
			want := maps.Clone(tt.want)
			want["./"] = "dir 755"
			if d := cmp.Diff(want, got); d != "" {
				t.Error(d)
			}
		})
	}
}

func TestFlattenHostile(t *testing.T) {
	file := images.File
	with := func(e images.Entry, change func(*images.Entry)) images.Entry {
		change(&e)
		return e
	}
	many := make([]images.Entry, 20)
	for i := range many {
		many[i] = file(fmt.Sprint("f", i), 0o644, "")
	}
	var loop []images.Entry
	loop = append(loop, images.Symlink("a", "b"), images.Symlink("b", "a"), file("a/x", 0o644, ""))
	tiny := Limits{Entries: 10, Bytes: 1000, NameBytes: 7000, PathBytes: 4096}
	for _, tt := range []struct {
		name    string
		entries []images.Entry
		text    string
	}{
		{"climbs out", []images.Entry{file("../x", 0o644, "")}, "leads out"},
		{"climbs out later", []images.Entry{file("a/../../x", 0o644, "")}, "leads out"},
		{"whiteout climbs out", []images.Entry{file("../.wh.x", 0o644, "")}, "leads out"},
		{"whiteout of ..", []images.Entry{file("d/.wh...", 0o644, "")}, "hides nothing"},
		{"whiteout of itself", []images.Entry{file("d/.wh.", 0o644, "")}, "hides nothing"},
		{"hard link out", []images.Entry{images.Hardlink("a", "../../etc/shadow")}, "leads out"},
		{"hard link to nothing", []images.Entry{images.Hardlink("a", "etc/shadow")}, "not a file"},
		{"hard link to itself", []images.Entry{images.Hardlink("a", "a")}, "not a file"},
		{"hard link to a directory", []images.Entry{images.Dir("d", 0o755), images.Hardlink("a", "d")}, "not a file"},
		{"hard link to the root", []images.Entry{images.Hardlink("a", "/")}, "not a file"},
		{"hard link through a lower symlink", []images.Entry{images.Symlink("d", "/"), images.Hardlink("a", "d/x")}, "not a file"},
		{"symlink loop", loop, "symbolic links"},
		{"through a file", []images.Entry{file("a", 0o644, ""), file("a/b", 0o644, "")}, "through a file"},
		{"root is a file", []images.Entry{file(".", 0o644, "")}, "root is not"},
		{"long component", []images.Entry{file(strings.Repeat("n", 256), 0o644, "")}, "component"},
		{"long path", []images.Entry{file(strings.Repeat("n/", 2100)+"n", 0o644, "")}, "name"},
		{"empty symlink", []images.Entry{images.Symlink("a", "")}, "target"},
		{"many entries", many, "entries"},
		{"many bytes", []images.Entry{file("a", 0o644, strings.Repeat("x", 600)), file("a", 0o644, strings.Repeat("x", 600))}, "bytes unpacked"},
		{"many names", []images.Entry{images.Symlink("a", strings.Repeat("x", 4000)), images.Symlink("b", strings.Repeat("x", 4000))}, "names and attributes"},
		{"unknown type", []images.Entry{with(file("a", 0o644, ""), func(e *images.Entry) { e.Typeflag = 'Z' })}, "type"},
		{"device number", []images.Entry{device("d", tar.TypeChar, 1, 1<<20)}, "number"},
		{"foreign id", []images.Entry{with(file("a", 0o644, ""), func(e *images.Entry) { e.Uid = 1 << 33 })}, "belongs"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := flat(t.Context(), tiny, plain(archive(t, tt.entries...)))
			if !errors.Is(err, ErrCorrupt) || !strings.Contains(err.Error(), tt.text) {
				t.Errorf("got %v, want ErrCorrupt: %s", err, tt.text)
			}
		})
	}
}

func TestCompression(t *testing.T) {
	a := archive(t, images.File("a", 0o644, strings.Repeat("x", 5000)))
	var gz, two, zs bytes.Buffer
	for _, w := range []*bytes.Buffer{&gz, &two, &two} {
		z := gzip.NewWriter(w)
		part := a
		if w == &two { // a gzip file may have several members
			part = a[:512]
			if two.Len() > 0 {
				part = a[512:]
			}
		}
		if _, err := z.Write(part); err != nil {
			t.Fatal(err)
		}
		if err := z.Close(); err != nil {
			t.Fatal(err)
		}
	}
	z, err := zstd.NewWriter(&zs)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := z.Write(a); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	flip := func(b []byte, at int) []byte {
		c := bytes.Clone(b)
		c[at] ^= 1
		return c
	}
	for name, tt := range map[string]struct {
		layer []byte
		ok    bool
	}{
		"plain": {a, true}, "gzip": {gz.Bytes(), true}, "gzip in two members": {two.Bytes(), true}, "zstd": {zs.Bytes(), true},
		"truncated plain": {a[:1000], false}, "truncated gzip": {gz.Bytes()[:gz.Len()/2], false}, "truncated zstd": {zs.Bytes()[:zs.Len()-6], false},
		"gzip checksum": {flip(gz.Bytes(), gz.Len()-6), false}, "zstd checksum": {flip(zs.Bytes(), zs.Len()-2), false},
		"no archive": {bytes.Repeat([]byte("junk"), 500), false}, "tiny": {[]byte{0x1f, 0x8b}, false}, "empty": {nil, true},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := flat(t.Context(), Limits{}, plain(tt.layer))
			if tt.ok && (err != nil || name != "empty" && len(got["a"]) != 5009) {
				t.Errorf("got %d names, %v", len(got), err)
			}
			if !tt.ok && !errors.Is(err, ErrCorrupt) {
				t.Errorf("got %v, want ErrCorrupt", err)
			}
		})
	}
}

// TestBombBehindTheEnd: what follows the end of an archive is bounded too.
func TestBombBehindTheEnd(t *testing.T) {
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	for range 64 {
		if _, err := z.Write(make([]byte, 1<<20)); err != nil {
			t.Fatal(err)
		}
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	_, err := flat(t.Context(), Limits{Bytes: 1 << 20, Entries: 10, NameBytes: 1000}, plain(b.Bytes()))
	if !errors.Is(err, ErrCorrupt) {
		t.Errorf("got %v, want ErrCorrupt", err)
	}
}

// FuzzFlatten: whatever a layer holds, it is laid out or refused as corrupt.
func FuzzFlatten(f *testing.F) {
	f.Add(archive(f, images.File("a/b", 0o644, "x"), images.Symlink("l", "a"), images.Hardlink("l/c", "a/b"), images.Whiteout("a/", "b"), images.Opaque("a/")), uint8(1))
	f.Add(archive(f, device("d", tar.TypeChar, 1, 3), images.Dir("x", 0o1777)), uint8(2))
	f.Fuzz(func(t *testing.T, layer []byte, n uint8) {
		layers := plain(layer)
		if n%2 == 0 {
			layers = append(layers, layers[0])
		}
		limits := Limits{Entries: 100, Bytes: 1 << 16, NameBytes: 1 << 16}.withDefaults(testSlot)
		tree, err := index(t.Context(), layers, limits)
		if err == nil {
			_, err = writeExt4(t.Context(), tree, layers, newMemFile(), testSlot)
		}
		if err != nil && !errors.Is(err, ErrCorrupt) {
			t.Errorf("got %v, want ErrCorrupt", err)
		}
	})
}
