// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"
	"github.com/u-root/u-root/pkg/cpio"
)

func TestKernelDependency(t *testing.T) {
	const show = "Package: linux-image-cloud-arm64\nVersion: 6.1.1-2\nDepends: linux-image-6.1.0-5-cloud-arm64 (= 6.1.1-2)\nDescription: Depends: no\n"
	if got, err := kernelDependency(show); err != nil || got != "linux-image-6.1.0-5-cloud-arm64=6.1.1-2" {
		t.Errorf("%q, %v", got, err)
	}
	if got, err := kernelDependency("Depends: libc6, linux-image-6.12.1-cloud-amd64\n"); err != nil || got != "linux-image-6.12.1-cloud-amd64" {
		t.Errorf("%q, %v", got, err)
	}
	if _, err := kernelDependency("Package: x\nDepends: libc6\n"); err == nil {
		t.Error("no kernel among the dependencies is no error")
	}
	if got := debVersion("linux-image-x=1:6.1-2"); got != "1%3a6.1-2" {
		t.Errorf("version in a file name: %q", got)
	}
}

func TestDebianSources(t *testing.T) {
	got := debianSources("http://b/debian/ stable main\nhttp://a/debian/ stable main\nhttp://b/debian/ stable main\nodd\n")
	want := "deb [signed-by=" + debianKeyring + "] http://a/debian/ stable main\ndeb [signed-by=" + debianKeyring + "] http://b/debian/ stable main\n"
	if got != want {
		t.Errorf("%q, want %q", got, want)
	}
	if got := debianSources(""); got != "" {
		t.Errorf("of nothing: %q", got)
	}
}

// image is the smallest thing that has the mark of an arm64 Image.
func image() []byte {
	b := make([]byte, 128)
	copy(b, "MZ")
	copy(b[56:], "ARM\x64")
	return b
}

func TestArm64Image(t *testing.T) {
	gz := func(b []byte) []byte {
		var out bytes.Buffer
		w := gzip.NewWriter(&out)
		if _, err := w.Write(b); err != nil {
			t.Fatal(err)
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		return out.Bytes()
	}
	zst := func(b []byte) []byte {
		w, err := zstd.NewWriter(nil)
		if err != nil {
			t.Fatal(err)
		}
		return w.EncodeAll(b, nil)
	}
	zboot := func(payload []byte) []byte {
		b := make([]byte, 512)
		copy(b, "MZ\x00\x00zimg")
		binary.LittleEndian.PutUint32(b[8:], uint32(len(b)))
		binary.LittleEndian.PutUint32(b[12:], uint32(len(payload)))
		return append(append(b, payload...), "padding"...)
	}
	for name, b := range map[string][]byte{
		"plain": image(), "gzip": gz(image()), "zstd": zst(image()), "zboot of gzip": zboot(gz(image())), "zboot of zstd": zboot(zst(image())),
	} {
		if got, err := arm64Image(b); err != nil || !bytes.Equal(got, image()) {
			t.Errorf("%s: %d bytes, %v", name, len(got), err)
		}
	}
	outside := zboot(gz(image()))
	binary.LittleEndian.PutUint32(outside[8:], 1<<31)
	for name, b := range map[string][]byte{
		"empty": nil, "bzImage": append(make([]byte, 0x202), "HdrS"...), "bad gzip": {0x1f, 0x8b, 0}, "payload outside": outside,
		"endless": gz(gz(gz(gz(image())))),
	} {
		if _, err := arm64Image(b); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

func TestCheckBzImage(t *testing.T) {
	if err := checkBzImage(append(make([]byte, 0x202), "HdrS"...)); err != nil {
		t.Error(err)
	}
	if checkBzImage(image()) == nil || checkBzImage(nil) == nil {
		t.Error("what is no bzImage is no error")
	}
}

func TestDependsOf(t *testing.T) {
	got := dependsOf([]byte("license=GPL\x00depends=virtio,virtio-ring\x00depends=\x00name=x\x00"))
	if want := []string{"virtio", "virtio_ring"}; !slices.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
}

func TestOrderModules(t *testing.T) {
	table := map[string][]string{"c": {"b", "a"}, "b": {"a", "builtin"}, "a": nil, "loop": {"pool"}, "pool": {"loop"}}
	find := func(name string) (module, bool, error) {
		deps, ok := table[name]
		if !ok && name != "builtin" {
			return module{}, false, errors.New("missing " + name)
		}
		return module{name: name, depends: slices.Clone(deps)}, ok, nil
	}
	for range 3 { // always the same
		got, err := orderModules([]string{"c", "builtin", "a"}, find)
		var names []string
		for _, m := range got {
			names = append(names, m.name)
		}
		if want := []string{"a", "b", "c"}; err != nil || !slices.Equal(names, want) {
			t.Errorf("%v, %v, want %v", names, err, want)
		}
	}
	for _, name := range []string{"loop", "absent"} {
		if _, err := orderModules([]string{name}, find); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

func TestInitramfs(t *testing.T) {
	path := filepath.Join(t.TempDir(), "virtio.ko")
	if err := os.WriteFile(path, []byte("module"), 0o600); err != nil {
		t.Fatal(err)
	}
	write := func() []byte {
		t.Helper()
		records, err := initramfsRecords(t.Context(), []module{{name: "virtio", path: path, depends: []string{"virtio_ring"}}}, []byte("agent"), "v1")
		if err != nil {
			t.Fatal(err)
		}
		var out bytes.Buffer
		if err := writeCPIO(&out, records); err != nil {
			t.Fatal(err)
		}
		return out.Bytes()
	}
	archive := write()
	if err := os.Chtimes(path, time.Now(), time.Now().Add(time.Hour)); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(archive, write()) {
		t.Error("the same inputs give other bytes")
	}
	records, err := cpio.ReadAllRecords(cpio.Newc.Reader(bytes.NewReader(archive)))
	if err != nil {
		t.Fatal(err)
	}
	content := map[string]string{}
	devices := map[string]uint64{}
	seen := map[string]bool{"": true, ".": true}
	for _, r := range records {
		if r.MTime != 0 || r.UID != 0 || r.GID != 0 {
			t.Errorf("%s: time %d, owner %d:%d", r.Name, r.MTime, r.UID, r.GID)
		}
		if r.Name != cpio.Trailer && !seen[filepath.Dir(r.Name)] {
			t.Errorf("%s comes before its directory: the kernel would drop it", r.Name)
		}
		seen[r.Name] = true
		if r.Mode&cpio.S_IFMT == cpio.S_IFCHR {
			devices[r.Name] = r.Rmajor<<8 | r.Rminor
		}
		b := make([]byte, r.FileSize)
		if r.ReaderAt != nil && r.FileSize > 0 {
			if _, err := r.ReadAt(b, 0); err != nil {
				t.Fatal(err)
			}
		}
		content[r.Name] = string(b)
	}
	for name, want := range map[string]string{
		"init": "agent/firkin-agent", "agent/firkin-agent": "agent", "etc/firkin-agent-version": "v1\n",
		"modules/virtio.ko": "module", "modules/list": "virtio virtio_ring\n",
	} {
		if content[name] != want {
			t.Errorf("%s: %q, want %q", name, content[name], want)
		}
	}
	for name, minor := range map[string]uint64{"dev/console": 5<<8 | 1, "dev/null": 1<<8 | 3} {
		if devices[name] != minor {
			t.Errorf("%s is device %#x, want %#x", name, devices[name], minor)
		}
	}
	var files []string
	for _, r := range records {
		if r.Mode&cpio.S_IFMT == cpio.S_IFREG {
			files = append(files, r.Name)
		}
	}
	if len(files) != 4 {
		t.Errorf("files %s: nothing but the agent, its version and its modules belongs there", strings.Join(files, ", "))
	}
}

// Go's build cache does not know what pkg-config answered: where the library is must come by
// the environment, or one checkout links against what is in another's folder.
func TestSeccompFolderIsNoAnswer(t *testing.T) {
	dir := t.TempDir()
	if err := writePkgConfig(dir); err != nil {
		t.Fatal(err)
	}
	for _, question := range []string{"--cflags", "--libs"} {
		out, err := exec.CommandContext(t.Context(), pkgConfig(dir), question, "--", "libseccomp").Output()
		if err != nil || strings.Contains(string(out), dir) {
			t.Errorf("pkg-config %s says %q, %v", question, out, err)
		}
	}
	for _, arch := range []string{"amd64", "arm64"} {
		env := strings.Join(agentEnv(arch, dir), "\n")
		for _, want := range []string{"\nCGO_CFLAGS=-O2 '-I" + dir + "/usr/include'\n", "\nCGO_LDFLAGS='-L" + dir + "/usr/lib/" + triplet(arch) + "'\n"} {
			if !strings.Contains(env, want) {
				t.Errorf("%s: the environment lacks %q:\n%s", arch, want, env)
			}
		}
	}
}
