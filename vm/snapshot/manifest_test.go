// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package snapshot

import (
	"bytes"
	"errors"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/vk-firkin/vk-firkin/vm"
)

var update = flag.Bool("update", false, "write golden files")

func testFeatures() vm.Features {
	return vm.Features{
		Arch: "amd64", Snapshots: true, Pause: true, ImageSlots: 8,
		SlotBytes: 64 << 30, ScratchBytes: 16 << 30, Compatibility: "qemu-9-tcg",
	}
}

// TestKeyGolden: a key that changes without a change of what it is made from throws
// away every snapshot in the field. If that is meant, change FormatVersion.
func TestKeyGolden(t *testing.T) {
	const want = "b62b431307cb700734f57ad3ba28ec306ba92e61cd52f94b3bfaf327c03373cf"
	if got := Key(testSpec(), testFeatures()); got != want {
		t.Errorf("key %s, want %s", got, want)
	}
}

func TestKeyDependsOnEverything(t *testing.T) {
	base := Key(testSpec(), testFeatures())
	seen := map[string]string{base: "nothing"}
	for name, change := range map[string]func(*Spec, *vm.Features){
		"vcpus":         func(s *Spec, _ *vm.Features) { s.Shape.VCPUs++ },
		"memory":        func(s *Spec, _ *vm.Features) { s.Shape.MemoryBytes += 2 << 20 },
		"kit":           func(s *Spec, _ *vm.Features) { s.Kit.Digest += "0" },
		"arch":          func(s *Spec, _ *vm.Features) { s.Kit.Arch = "arm64" },
		"kind":          func(s *Spec, _ *vm.Features) { s.Kind = "other" },
		"compatibility": func(_ *Spec, f *vm.Features) { f.Compatibility += "x" },
		"slots":         func(_ *Spec, f *vm.Features) { f.ImageSlots++ },
		"slot size":     func(_ *Spec, f *vm.Features) { f.SlotBytes++ },
		"scratch size":  func(_ *Spec, f *vm.Features) { f.ScratchBytes++ },
	} {
		s, f := testSpec(), testFeatures()
		change(&s, &f)
		key := Key(s, f)
		if other, taken := seen[key]; taken {
			t.Errorf("%s changes the key no more than %s", name, other)
		}
		seen[key] = name
	}
	// Where the kit lies is not what it is.
	s := testSpec()
	s.Kit.Kernel = "/elsewhere"
	if Key(s, testFeatures()) != base {
		t.Error("the key depends on a path")
	}
}

func testManifest() Manifest {
	return Manifest{
		Version: FormatVersion, Kind: KindBase, Key: strings.Repeat("0a", 32), Instance: strings.Repeat("1b", 16),
		Created: time.Date(2026, 5, 1, 12, 0, 0, 0, time.UTC), Driver: "qemu", Arch: "amd64",
		Compatibility: "qemu-9-tcg", KitDigest: "sha256:" + strings.Repeat("c", 64),
		Shape: vm.Shape{VCPUs: 1, MemoryBytes: 256 << 20},
		Members: []Member{
			{"machine/memory", 256 << 20, strings.Repeat("d", 64), true},
			{"seal.key", 32, strings.Repeat("e", 64), false},
		},
	}
}

func templateManifest() Manifest {
	m := testManifest()
	m.Kind = KindTemplate
	m.Template = &Template{
		Namespace: "team", Name: "web", Revision: strings.Repeat("2c", 32),
		Images: []ManifestImage{
			{Ref: "registry.example.com/app:1", Digest: "sha256:" + strings.Repeat("3d", 32), Disk: DiskIdentity{Size: 64 << 30, Head: strings.Repeat("4e", 32)}},
			{Ref: "registry.example.com/proxy@sha256:" + strings.Repeat("5f", 32), Digest: "sha256:" + strings.Repeat("5f", 32), Disk: DiskIdentity{Size: 64 << 30, Head: strings.Repeat("60", 32)}},
		},
	}
	return m
}

// TestManifestGolden: what was written before there were templates is still read.
func TestManifestGolden(t *testing.T) {
	for name, m := range map[string]Manifest{"manifest.json": testManifest(), "manifest-template.json": templateManifest()} {
		got, err := encodeManifest(m)
		if err != nil {
			t.Fatal(err)
		}
		path := filepath.Join("testdata", name)
		if *update {
			if err := os.WriteFile(path, got, 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(string(want), string(got)); diff != "" {
			t.Errorf("manifest on disk changed (-want +got):\n%s", diff)
		}
		back, err := DecodeManifest(bytes.NewReader(want))
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(m, back); diff != "" {
			t.Error(diff)
		}
	}
}

func TestManifestRefusals(t *testing.T) {
	for name, change := range map[string]func(*Manifest){
		"version":       func(m *Manifest) { m.Version++ },
		"kind":          func(m *Manifest) { m.Kind = "other" },
		"key":           func(m *Manifest) { m.Key = "../" + m.Key[3:] },
		"instance":      func(m *Manifest) { m.Instance = "" },
		"time":          func(m *Manifest) { m.Created = time.Time{} },
		"shape":         func(m *Manifest) { m.Shape.VCPUs = 0 },
		"long text":     func(m *Manifest) { m.Driver = strings.Repeat("x", 2000) },
		"parent":        func(m *Manifest) { m.Members[0].Name = "machine/.." },
		"absolute":      func(m *Manifest) { m.Members[0].Name = "/etc/passwd" },
		"outside":       func(m *Manifest) { m.Members[0].Name = "machine/../x" },
		"backslash":     func(m *Manifest) { m.Members[0].Name = "machine/a\\b" },
		"hidden":        func(m *Manifest) { m.Members[0].Name = "machine/.x" },
		"nested":        func(m *Manifest) { m.Members[0].Name = "machine/a/b" },
		"newline":       func(m *Manifest) { m.Members[0].Name = "machine/a\nb" },
		"negative size": func(m *Manifest) { m.Members[0].Size = -1 },
		"huge":          func(m *Manifest) { m.Members[0].Size = 1 << 60 },
		"digest":        func(m *Manifest) { m.Members[0].SHA256 = strings.Repeat("Z", 64) },
		"twice":         func(m *Manifest) { m.Members = append(m.Members, m.Members[1]) },
		"no seal key":   func(m *Manifest) { m.Members = m.Members[:1] },
		"short key":     func(m *Manifest) { m.Members[1].Size = 31 },
		"too many": func(m *Manifest) {
			for range maxMembers {
				m.Members = append(m.Members, Member{})
			}
		},
	} {
		m := testManifest()
		change(&m)
		if _, err := encodeManifest(m); !errors.Is(err, ErrManifest) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for name, change := range map[string]func(*Manifest){
		"no template":       func(m *Manifest) { m.Template = nil },
		"base with one":     func(m *Manifest) { m.Kind = KindBase },
		"no name":           func(m *Manifest) { m.Template.Name = "" },
		"escape in name":    func(m *Manifest) { m.Template.Namespace = "a\x1b[2J" },
		"long revision":     func(m *Manifest) { m.Template.Revision = strings.Repeat("x", 2000) },
		"no images":         func(m *Manifest) { m.Template.Images = nil },
		"too many images":   func(m *Manifest) { m.Template.Images = make([]ManifestImage, maxTemplateImages+1) },
		"no ref":            func(m *Manifest) { m.Template.Images[0].Ref = "" },
		"no digest":         func(m *Manifest) { m.Template.Images[1].Digest = "" },
		"negative disk":     func(m *Manifest) { m.Template.Images[0].Disk.Size = -1 },
		"no head of disk":   func(m *Manifest) { m.Template.Images[0].Disk.Head = "" },
		"head is no digest": func(m *Manifest) { m.Template.Images[0].Disk.Head = strings.Repeat("Z", 64) },
	} {
		m := templateManifest()
		change(&m)
		if _, err := encodeManifest(m); !errors.Is(err, ErrManifest) {
			t.Errorf("template, %s: %v", name, err)
		}
	}
	for name, text := range map[string]string{
		"empty":         "",
		"not JSON":      "hello",
		"null":          "null",
		"unknown field": `{"version":1,"surprise":true}`,
		"huge":          strings.Repeat(" ", maxManifestBytes) + "{}",
	} {
		if _, err := DecodeManifest(strings.NewReader(text)); !errors.Is(err, ErrManifest) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// FuzzManifest: a manifest that is accepted stays inside its set, is bounded, and
// is what is written back.
func FuzzManifest(f *testing.F) {
	seed, err := encodeManifest(testManifest())
	if err != nil {
		f.Fatal(err)
	}
	f.Add(seed)
	if seed, err = encodeManifest(templateManifest()); err != nil {
		f.Fatal(err)
	}
	f.Add(seed)
	f.Add(bytes.ReplaceAll(seed, []byte(`"team"`), []byte(`null`)))
	f.Add([]byte(`{"version":1}`))
	f.Add([]byte("{"))
	f.Fuzz(func(t *testing.T, data []byte) {
		m, err := DecodeManifest(bytes.NewReader(data))
		if err != nil {
			return
		}
		for _, member := range m.Members {
			if !filepath.IsLocal(filepath.FromSlash(member.Name)) || len(member.Name) > maxNameBytes+len("machine/") {
				t.Errorf("accepted member %q", member.Name)
			}
		}
		if (m.Template != nil) != (m.Kind == KindTemplate) || m.Template != nil && (len(m.Template.Images) == 0 || len(m.Template.Images) > maxTemplateImages) {
			t.Errorf("accepted template %+v of kind %q", m.Template, m.Kind)
		}
		again, err := encodeManifest(m)
		if err != nil {
			t.Fatalf("accepted what cannot be written: %v", err)
		}
		if _, err := DecodeManifest(bytes.NewReader(again)); err != nil {
			t.Fatalf("does not read what it wrote: %v", err)
		}
	})
}

func TestSanitizeConsole(t *testing.T) {
	for _, c := range []struct{ in, want string }{
		{"", ""},
		{"a\r\nb\n", "a\nb"},
		{"\x1b[2Jx\x00\x7f\u009b", ".[2Jx..."},
		{strings.Repeat("x", 5000) + "end", strings.Repeat("x", maxConsole-3) + "end"},
	} {
		if got := sanitizeConsole([]byte(c.in)); got != c.want {
			t.Errorf("%.20q: got %.40q", c.in, got)
		}
	}
}

func TestPick(t *testing.T) {
	infos := []Info{{Name: "aaaa1"}, {Name: "aaaa2"}, {Name: "bbbb1"}, {Name: "bbbb1-quarantined"}}
	for name, want := range map[string]string{"aaaa1": "aaaa1", "bbbb1": "bbbb1", "bbbb1-": "bbbb1-quarantined", "aaaa": "", "aaa": "", "": "", "cccc": ""} {
		got, err := pick(infos, name)
		if got.Name != want || (want == "") != errors.Is(err, ErrNotFound) {
			t.Errorf("%q: %q, %v", name, got.Name, err)
		}
	}
}

func TestDecide(t *testing.T) {
	now := time.Date(2026, 5, 1, 12, 0, 0, 0, time.UTC)
	hourOld := Info{Name: "k", Key: "k", Status: StatusReady, LastUsed: now.Add(-time.Hour)}
	with := func(change func(*Info)) Info {
		i := hourOld
		change(&i)
		return i
	}
	for _, c := range []struct {
		name   string
		info   Info
		opts   GCOptions
		remove bool
	}{
		{"unused", hourOld, GCOptions{}, true},
		{"exactly the grace", hourOld, GCOptions{Grace: time.Hour}, true},
		{"within the grace", hourOld, GCOptions{Grace: time.Hour + 1}, false},
		{"a machine", with(func(i *Info) { i.Machines = []string{"m"} }), GCOptions{}, false},
		{"pinned", with(func(i *Info) { i.Pins = 1 }), GCOptions{}, false},
		{"wanted", hourOld, wants("j", "k"), false},
		{"wanted, but damaged", with(func(i *Info) { i.Status = StatusDamaged }), wants("k"), true},
		{"wanted, but in quarantine", with(func(i *Info) { i.Status = StatusQuarantined }), wants("k"), true},
		{"in quarantine, with a machine", with(func(i *Info) { i.Status, i.Machines = StatusQuarantined, []string{"m"} }), GCOptions{}, false},
		{"a template, while they are not known", with(func(i *Info) { i.Manifest.Kind = KindTemplate }), GCOptions{Wanted: func() Wanted { return Wanted{Templates: true} }}, false},
		{"a template, when they are known", with(func(i *Info) { i.Manifest.Kind = KindTemplate }), GCOptions{}, true},
		{"a base, while templates are not known", hourOld, GCOptions{Wanted: func() Wanted { return Wanted{Templates: true} }}, true},
		{"chosen", hourOld, GCOptions{Only: []string{"k"}}, true},
		{"not chosen", hourOld, GCOptions{Only: []string{}}, false},
		{"pinned since it was chosen", with(func(i *Info) { i.Pins = 1 }), GCOptions{Only: []string{"k"}}, false},
		{"used in the future", with(func(i *Info) { i.LastUsed = now.Add(time.Hour) }), GCOptions{Grace: time.Minute}, false},
	} {
		if d := decide(c.info, c.opts, c.opts.wanted(), now); d.Remove != c.remove || d.Reason == "" {
			t.Errorf("%s: %v, %q", c.name, d.Remove, d.Reason)
		}
	}
}
