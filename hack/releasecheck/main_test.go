// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"io"
	"maps"
	"os"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strings"
	"testing"

	"github.com/vk-firkin/vk-firkin/vm/guest/kit"
)

// entry is a file of an archive that a test writes.
type entry struct {
	name, content string
	mode          int64
	kind          byte
}

func writeArchive(t *testing.T, path string, entries ...entry) {
	t.Helper()
	var b bytes.Buffer
	zipped := gzip.NewWriter(&b)
	w := tar.NewWriter(zipped)
	for _, e := range entries {
		h := &tar.Header{Name: e.name, Mode: e.mode, Size: int64(len(e.content)), Typeflag: e.kind}
		if e.kind == tar.TypeSymlink {
			h.Linkname, h.Size = "elsewhere", 0
		}
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, e.content); err != nil && e.kind != tar.TypeSymlink {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if err := zipped.Close(); err != nil {
		t.Fatal(err)
	}
	write(t, path, b.String())
}

func write(t *testing.T, path, content string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
}

// wants compares an error with what it must say; empty: there must be none.
func wants(t *testing.T, err error, says string) {
	t.Helper()
	switch {
	case says == "" && err != nil:
		t.Errorf("unexpected: %v", err)
	case says != "" && (err == nil || !strings.Contains(err.Error(), says)):
		t.Errorf("it says %v, want %q", err, says)
	}
}

func TestArchive(t *testing.T) {
	dir := t.TempDir()
	write(t, filepath.Join(dir, "kernel"), "kernel")
	sum, err := digest(filepath.Join(dir, "kernel"))
	if err != nil {
		t.Fatal(err)
	}
	manifest := kit.Manifest{Files: []kit.File{{Name: "kernel", Size: 6, SHA256: sum}, {Name: kit.ScratchName, Size: 4, SHA256: "of a disk with holes"}}}
	good := map[string]entry{}
	for name, content := range map[string]string{
		"bin/vk-firkin": "program", "LICENSE": "a", "THIRD-PARTY-LICENCES.txt": "b", "charts/vk-firkin/Chart.yaml": "c",
		"bin/guest/arm64/kit.json": "{}", "bin/guest/arm64/NOTICES.txt": "GPL", "bin/guest/arm64/kernel": "kernel", "bin/guest/arm64/scratch.ext4": "disk",
	} {
		good[name] = entry{"v/" + name, content, 0o644, tar.TypeReg}
	}
	good["bin/vk-firkin"] = entry{"v/bin/vk-firkin", "program", 0o755, tar.TypeReg}
	with := func(name string, e entry) map[string]entry {
		m := maps.Clone(good)
		m[name] = e
		return m
	}
	without := func(name string) map[string]entry {
		m := maps.Clone(good)
		delete(m, name)
		return m
	}
	for name, tt := range map[string]struct {
		entries map[string]entry
		says    string
	}{
		"good":               {good, ""},
		"no program":         {without("bin/vk-firkin"), "it has no bin/vk-firkin"},
		"no licences":        {without("THIRD-PARTY-LICENCES.txt"), "it has no THIRD-PARTY-LICENCES.txt"},
		"no notices of kit":  {without("bin/guest/arm64/NOTICES.txt"), "it has no bin/guest/arm64/NOTICES.txt"},
		"no kernel":          {without("bin/guest/arm64/kernel"), "it has no bin/guest/arm64/kernel"},
		"no disk":            {without("bin/guest/arm64/scratch.ext4"), "it has no bin/guest/arm64/scratch.ext4"},
		"another kernel":     {with("bin/guest/arm64/kernel", entry{"v/bin/guest/arm64/kernel", "lernek", 0o644, tar.TypeReg}), "is not the kit's"},
		"a short disk":       {with("bin/guest/arm64/scratch.ext4", entry{"v/bin/guest/arm64/scratch.ext4", "di", 0o644, tar.TypeReg}), "has 2 bytes, want 4"},
		"private licence":    {with("LICENSE", entry{"v/LICENSE", "a", 0o600, tar.TypeReg}), "others cannot read it"},
		"not to be run":      {with("bin/vk-firkin", entry{"v/bin/vk-firkin", "program", 0o644, tar.TypeReg}), "bin/vk-firkin has mode"},
		"outside":            {with("x", entry{"x", "", 0o644, tar.TypeReg}), "is not below v"},
		"out by dots":        {with("x", entry{"v/../x", "", 0o644, tar.TypeReg}), "is not below v"},
		"a link in the kit":  {with("x", entry{"v/x", "", 0o777, tar.TypeSymlink}), "no regular file"},
		"an empty licence":   {with("LICENSE", entry{"v/LICENSE", "", 0o644, tar.TypeReg}), "it has no LICENSE"},
		"without holes":      {with("x", entry{"v/x", strings.Repeat("\x00", 64<<10), 0o644, tar.TypeReg}), "does it keep the holes"},
		"of another machine": {with("bin/guest/amd64/kernel", entry{"v/bin/guest/amd64/kernel", "x", 0o644, tar.TypeReg}), ""},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "v.tar.gz")
			writeArchive(t, path, slices.Collect(maps.Values(tt.entries))...)
			program := filepath.Join(t.TempDir(), "program")
			files, err := readArchive(path, "v", 64<<10, map[string]string{"bin/vk-firkin": program})
			if err == nil {
				err = complete(files, "arm64", manifest)
			}
			wants(t, err, tt.says)
			if tt.says == "" {
				if b, err := os.ReadFile(program); err != nil || string(b) != "program" {
					t.Errorf("the program is %q, %v", b, err)
				}
			}
		})
	}
}

func TestChecksums(t *testing.T) {
	const sumOfX = "2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881"
	for name, tt := range map[string]struct{ sums, says string }{
		"good":           {sumOfX + "  x\n", ""},
		"another file":   {strings.Repeat("0", 64) + "  x\n", "of x what is not so"},
		"one is missing": {"", "has no x"},
		"one is gone":    {sumOfX + "  x\n" + sumOfX + "  y\n", "has y, which is not there"},
		"one space":      {sumOfX + " x\n", "the line"},
		"twice":          {sumOfX + "  x\n" + sumOfX + "  x\n", "the line"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			write(t, filepath.Join(dir, "x"), "x")
			write(t, filepath.Join(dir, "SHA256SUMS"), tt.sums)
			wants(t, release{dir: dir}.checksums(), tt.says)
		})
	}
}

func buildOf(goos, arch, cgo, tags string) *debug.BuildInfo {
	return &debug.BuildInfo{Settings: []debug.BuildSetting{
		{Key: "GOOS", Value: goos}, {Key: "GOARCH", Value: arch}, {Key: "CGO_ENABLED", Value: cgo}, {Key: "-tags", Value: tags}, {Key: "-trimpath", Value: "true"},
	}}
}

// A program for a Mac without its driver links as well as one with it: this is what keeps it from being given away.
func TestBuild(t *testing.T) {
	for name, tt := range map[string]struct {
		info *debug.BuildInfo
		goos string
		says string
	}{
		"linux":              {buildOf("linux", "arm64", "0", ""), "linux", ""},
		"a Mac's":            {buildOf("darwin", "arm64", "1", ""), "darwin", ""},
		"no driver":          {buildOf("darwin", "arm64", "0", ""), "darwin", "it has no driver"},
		"with the C library": {buildOf("linux", "arm64", "1", ""), "linux", "needs the C library"},
		"of the other":       {buildOf("linux", "arm64", "0", ""), "darwin", "vk-firkin is for linux/arm64"},
		"another processor":  {buildOf("linux", "amd64", "0", ""), "linux", "vk-firkin is for linux/amd64"},
		"the simulator":      {buildOf("linux", "arm64", "0", "vzsim"), "linux", "tags: vzsim"},
		"with paths":         {&debug.BuildInfo{Settings: buildOf("linux", "arm64", "0", "").Settings[:4]}, "linux", "without -trimpath"},
	} {
		t.Run(name, func(t *testing.T) { wants(t, judgeBuild(tt.info, tt.goos, "arm64"), tt.says) })
	}
}

func TestBill(t *testing.T) {
	info := &debug.BuildInfo{Deps: []*debug.Module{
		{Path: "example.org/a", Version: "v1.0.0"},
		{Path: "example.org/old", Version: "v1.0.0", Replace: &debug.Module{Path: "example.org/new", Version: "v2.0.0+incompatible"}},
	}}
	const both = "pkg:golang/example.org/a@v1.0.0?type=module pkg:golang/example.org/new@v2.0.0+incompatible?type=module pkg:golang/std@v1.26.0"
	for name, tt := range map[string]struct{ version, sum, purls, says string }{
		"good":            {"v1", "sum", both, ""},
		"another version": {"v2", "sum", both, `it is of version "v2"`},
		"another program": {"v1", "other", both, "it is of another program"},
		"one is missing":  {"v1", "sum", "pkg:golang/example.org/a@v1.0.0", "example.org/new@v2.0.0+incompatible is linked, and not in it"},
		"one too many":    {"v1", "sum", both + " pkg:golang/example.org/b@v1.0.0", "example.org/b@v1.0.0 is in it, and not linked"},
		"an older one":    {"v1", "sum", strings.Replace(both, "a@v1.0.0", "a@v0.9.0", 1), "example.org/a@v1.0.0 is linked"},
	} {
		t.Run(name, func(t *testing.T) {
			var b bill
			b.Metadata.Component.Version = tt.version
			b.Metadata.Properties = []struct{ Name, Value string }{{"cdx:gomod:binary:hash:SHA-256", tt.sum}}
			for _, purl := range strings.Fields(tt.purls) {
				b.Components = append(b.Components, struct {
					PURL string `json:"purl"`
				}{purl})
			}
			wants(t, judgeBill(b, "v1", "sum", info), tt.says)
		})
	}
}

func TestDoctor(t *testing.T) {
	for says, out := range map[string]string{
		"":                            `[{"name":"host","status":"fail","found":"no QEMU"},{"name":"guest kit","status":"ok","found":"/x is complete"}]`,
		"no such file":                `[{"name":"guest kit","status":"fail","found":"kit.json: no such file"}]`,
		"says nothing of the guest k": `[]`,
		"says no JSON":                `oops`,
	} {
		wants(t, judgeDoctor([]byte(out)), says)
	}
}

// A release without an archive, or with one of another version, is none.
func TestNoRelease(t *testing.T) {
	dir := t.TempDir()
	wants(t, release{dir: dir}.check(t.Context()), "--version is missing")
	wants(t, release{dir: dir, version: "v1"}.check(t.Context()), "there is no archive")
	writeArchive(t, filepath.Join(dir, "vk-firkin-v2-linux-amd64.tar.gz"))
	write(t, filepath.Join(dir, "SHA256SUMS"), "")
	wants(t, release{dir: dir, version: "v1"}.check(t.Context()), "no archive has such a name")
	wants(t, release{dir: dir, version: "v1"}.check(t.Context()), "has no vk-firkin-v2-linux-amd64.tar.gz")
}
