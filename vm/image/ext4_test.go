// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package image

import (
	"archive/tar"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/vk-firkin/vk-firkin/test/images"
	"github.com/vk-firkin/vk-firkin/vm/durable"
)

// memFile is a file in memory.
type memFile struct {
	b   []byte
	pos int64
}

func newMemFile() *memFile { return &memFile{} }

func (m *memFile) grow(n int64) {
	if n > int64(len(m.b)) {
		m.b = append(m.b, make([]byte, n-int64(len(m.b)))...)
	}
}

func (m *memFile) Write(p []byte) (int, error) {
	m.grow(m.pos + int64(len(p)))
	copy(m.b[m.pos:], p)
	m.pos += int64(len(p))
	return len(p), nil
}

func (m *memFile) Read(p []byte) (int, error) {
	// Behind the end are the zeros of a file that was extended.
	m.grow(m.pos + int64(len(p)))
	n := copy(p, m.b[m.pos:])
	m.pos += int64(n)
	return n, nil
}

func (m *memFile) Seek(o int64, whence int) (int64, error) {
	if whence != io.SeekStart {
		return 0, errors.New("only from the start")
	}
	m.pos = o
	return o, nil
}

func (m *memFile) Sync() error          { return nil }
func (m *memFile) Close() error         { return nil }
func (m *memFile) Truncate(int64) error { return nil }

// TestSparseWriter compares random writes with what they would have left in an
// ordinary file, and that zeros cost nothing.
func TestSparseWriter(t *testing.T) {
	for seed := range uint64(60) {
		rnd := rand.New(rand.NewPCG(seed, 1))
		want, under := newMemFile(), newMemFile()
		w := &sparseWriter{ctx: t.Context(), f: under}
		for range 30 {
			if rnd.IntN(4) == 0 {
				at := int64(rnd.IntN(40)) * blockBytes / int64(1+rnd.IntN(2))
				_, _ = want.Seek(at, io.SeekStart)
				_, _ = w.Seek(at, io.SeekStart)
			}
			p := make([]byte, rnd.IntN(5*blockBytes))
			for i := range p {
				if (i/blockBytes)%3 == rnd.IntN(3) {
					p[i] = byte(rnd.IntN(3))
				}
			}
			if rnd.IntN(3) == 0 {
				clear(p)
			}
			n, err := w.Write(p)
			if n != len(p) || err != nil {
				t.Fatalf("seed %d: wrote %d of %d, %v", seed, n, len(p), err)
			}
			_, _ = want.Write(p)
		}
		under.grow(int64(len(want.b)))
		if !bytes.Equal(want.b, under.b) {
			t.Fatalf("seed %d: content differs", seed)
		}
	}
	under := newMemFile()
	w := &sparseWriter{ctx: t.Context(), f: under}
	if _, err := w.Write(make([]byte, 10*blockBytes)); err != nil || len(under.b) != 0 || w.used != 0 {
		t.Errorf("zeros were written: %d bytes, %v", len(under.b), err)
	}
}

// e2fsprogs finds a program of e2fsprogs, which Debian keeps out of users' PATH.
func e2fsprogs(t testing.TB, name string) string {
	t.Helper()
	for _, dir := range append(filepath.SplitList(os.Getenv("PATH")), "/usr/sbin", "/sbin", "/opt/homebrew/opt/e2fsprogs/sbin") {
		p := filepath.Join(dir, name)
		if st, err := os.Stat(p); err == nil && st.Mode()&0o111 != 0 {
			return p
		}
	}
	t.Skipf("%s is not installed (package e2fsprogs): nobody else here can read an ext4 file system", name)
	return ""
}

func xattrs(e images.Entry, attrs map[string]string) images.Entry {
	e.PAXRecords = map[string]string{}
	for k, v := range attrs {
		e.PAXRecords[xattrRecord+k] = v
	}
	return e
}

// capNetBind is cap_net_bind_service=ep as the kernel stores it.
const capNetBind = "\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"

// manyXattrs do not fit into an inode.
func manyXattrs() map[string]string {
	return map[string]string{
		"user.zz": strings.Repeat("z", 500), "user.aaa": strings.Repeat("a", 600), "user.b": strings.Repeat("b", 700),
		"security.capability": capNetBind, "system.posix_acl_access": acl(),
	}
}

// acl of getxattr: owner rwx, user 1000 r, group r, mask r, others none.
func acl() string {
	b := binary.LittleEndian.AppendUint32(nil, 2)
	for _, e := range [][3]uint32{{1, 7, 0xffffffff}, {2, 4, 1000}, {4, 4, 0xffffffff}, {0x10, 4, 0xffffffff}, {0x20, 0, 0xffffffff}} {
		b = binary.LittleEndian.AppendUint16(b, uint16(e[0]))
		b = binary.LittleEndian.AppendUint16(b, uint16(e[1]))
		b = binary.LittleEndian.AppendUint32(b, e[2])
	}
	return string(b)
}

// richLayers have one of everything that must survive the conversion.
func richLayers(t testing.TB) [][]byte {
	owned := images.File("owned", 0o640, "mine")
	owned.Uid, owned.Gid = 100000, 70000
	owned.ModTime = time.Unix(1234567890, 123456789)
	owned.Format = tar.FormatPAX
	setuid := images.File("setuid", 0o4755, "x")
	root := images.Dir(".", 0o751)
	return [][]byte{
		archive(t,
			root, images.Dir("tmp", 0o1777), owned, setuid, images.File("zero", 0o644, ""),
			images.File("big", 0o644, strings.Repeat("0123456789abcdef", 3<<16)),
			images.File("holes", 0o644, strings.Repeat("\x00", 20<<20)+"end"),
			images.Symlink("short", "owned"), images.Symlink("long", "/"+strings.Repeat("l", 2000)),
			images.Hardlink("other", "owned"),
			xattrs(images.File("cap", 0o755, "c"), map[string]string{"security.capability": capNetBind, "user.note": "hi", "security.selinux": "dropped", "trusted.overlay.opaque": "y"}),
			xattrs(images.File("many", 0o644, "m"), manyXattrs()),
			xattrs(images.File("acl", 0o740, "a"), map[string]string{"system.posix_acl_access": acl()}),
			device("null", tar.TypeChar, 1, 3), device("disk", tar.TypeBlock, 259, 300), device("fifo", tar.TypeFifo, 0, 0),
			images.File(strings.Repeat("n", 255), 0o644, "long name"),
			images.File("gone", 0o644, "gone"), images.File(strings.Repeat("deep/", 50)+"er", 0o644, "deep"),
		),
		archive(t, images.Whiteout("", "gone"), images.Hardlink("d/third", "owned"), images.File("d/ünï code", 0o644, "odd name")),
	}
}

func writeRich(t testing.TB) string {
	t.Helper()
	layers := plain(richLayers(t)...)
	tree, err := index(t.Context(), layers, Limits{}.withDefaults(1<<30))
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "disk")
	f, err := create(durable.Host, path)
	if err != nil {
		t.Fatal(err)
	}
	used, err := writeExt4(t.Context(), tree, layers, f, 1<<30)
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	if used > 8<<20 {
		t.Errorf("%d bytes used, the 20 MiB of zeros among them", used)
	}
	return path
}

// TestDisk has e2fsprogs check and read what the conversion wrote.
func TestDisk(t *testing.T) {
	fsck, debugfs := e2fsprogs(t, "e2fsck"), e2fsprogs(t, "debugfs")
	path := writeRich(t)
	if out, err := exec.CommandContext(t.Context(), fsck, "-fn", path).CombinedOutput(); err != nil {
		t.Fatalf("e2fsck: %v\n%s", err, out)
	}
	debug := func(request string) string {
		t.Helper()
		cmd := exec.CommandContext(t.Context(), debugfs, "-R", request, path)
		cmd.Env = append(os.Environ(), "TZ=UTC", "DEBUGFS_PAGER=__none__")
		out, err := cmd.Output()
		if err != nil {
			t.Fatalf("debugfs %s: %v", request, err)
		}
		return string(out)
	}
	stat := func(name string, want ...string) {
		t.Helper()
		out := regexp.MustCompile(`\s+`).ReplaceAllString(debug("stat "+name), " ")
		for _, w := range want {
			if !strings.Contains(out, w) {
				t.Errorf("stat %s lacks %q:\n%s", name, w, out)
			}
		}
	}
	stat("/", "Type: directory Mode: 0751")
	stat("/tmp", "Type: directory Mode: 01777")
	stat("/owned", "Type: regular Mode: 0640", "User: 100000 Group: 70000", "Size: 4", "Links: 3", fmt.Sprintf("mtime: 0x%08x", 1234567890))
	stat("/setuid", "Mode: 04755")
	stat("/zero", "Type: regular", "Size: 0", "Blockcount: 0")
	stat("/holes", fmt.Sprintf("Size: %d", 20<<20+3))
	stat("/short", "Type: symlink", `Fast link dest: "owned"`)
	stat("/long", "Type: symlink", "Size: 2001")
	stat("/null", "Type: character special", "Device major/minor number: 01:03")
	stat("/disk", "Type: block special", "Device major/minor number: 259:300")
	stat("/fifo", "Type: FIFO")
	inode := regexp.MustCompile(`Inode: (\d+)`)
	first := inode.FindString(debug("stat /owned"))
	for _, n := range []string{"/other", "/d/third"} {
		if got := inode.FindString(debug("stat " + n)); got != first || got == "" {
			t.Errorf("%s is %s, want %s", n, got, first)
		}
	}
	for name, want := range map[string]string{
		"/owned": "mine", "/zero": "", "/big": strings.Repeat("0123456789abcdef", 3<<16), "/" + strings.Repeat("n", 255): "long name",
		"/" + strings.Repeat("deep/", 50) + "er": "deep", "/holes": strings.Repeat("\x00", 20<<20) + "end",
	} {
		if got := debug("cat " + name); got != want {
			t.Errorf("cat %.20s: %d bytes, want %d", name, len(got), len(want))
		}
	}
	if out := debug("ls -l /"); strings.Contains(out, "gone") {
		t.Error("the whiteout had no effect")
	}
	if out := debug("ls -l /d"); !strings.Contains(out, `\xc3\xbcn\xc3\xaf code`) {
		t.Errorf("odd name is lost: %s", out)
	}
	attrs := debug("ea_list /cap")
	if !strings.Contains(attrs, "security.capability (20)") || !strings.Contains(attrs, "user.note (2)") || strings.Contains(attrs, "selinux") || strings.Contains(attrs, "overlay") {
		t.Errorf("attributes of /cap: %s", attrs)
	}
	// debugfs shows ACLs in the form of getxattr again.
	if out := debug("ea_list /acl"); !strings.Contains(out, "system.posix_acl_access") {
		t.Errorf("attributes of /acl: %s", out)
	}
}

// TestSameImageSameDisk: the disk is a function of the image.
func TestSameImageSameDisk(t *testing.T) {
	var disks [2][]byte
	for i := range disks {
		f, err := os.Open(writeRich(t))
		if err != nil {
			t.Fatal(err)
		}
		disks[i], err = io.ReadAll(io.LimitReader(f, 32<<20))
		if err != nil {
			t.Fatal(err)
		}
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if !bytes.Equal(disks[0], disks[1]) {
		t.Error("two conversions of the same layers differ")
	}
}

// TestTooLargeForTheSlot: what does not fit is the image's fault, and no panic.
func TestTooLargeForTheSlot(t *testing.T) {
	var entries []images.Entry
	for i := range 600 { // 600 files of one byte need a block each
		entries = append(entries, images.File(fmt.Sprint("f", i), 0o644, "x"))
	}
	layers := plain(archive(t, entries...))
	tree, err := index(t.Context(), layers, Limits{}.withDefaults(minSlotBytes))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := writeExt4(t.Context(), tree, layers, newMemFile(), minSlotBytes); !errors.Is(err, ErrCorrupt) {
		t.Errorf("got %v, want ErrCorrupt", err)
	}
}
