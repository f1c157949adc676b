// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package images

import (
	"archive/tar"
	"bytes"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
)

func TestRegistry(t *testing.T) {
	r, err := StartRegistry(RegistryOptions{User: "u", Password: "p"})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = r.Close() }()
	img, err := Small("amd64")
	if err != nil {
		t.Fatal(err)
	}
	ref, err := r.Push("a/b:c", img)
	if err != nil || ref != r.Addr()+"/a/b:c" {
		t.Fatalf("push: %q, %v", ref, err)
	}
	if n := r.Count(); n != 0 {
		t.Errorf("the push was counted: %d", n)
	}
	parsed, err := name.ParseReference(ref, name.Insecure)
	if err != nil {
		t.Fatal(err)
	}
	pull := func(auth authn.Authenticator) error {
		got, err := remote.Image(parsed, remote.WithAuth(auth), remote.WithRetryStatusCodes())
		if err != nil {
			return err
		}
		r := mutate.Extract(got)
		_, err = io.Copy(io.Discard, r)
		return err
	}
	good := &authn.Basic{Username: "u", Password: "p"}
	if err := pull(good); err != nil {
		t.Errorf("pull: %v", err)
	}
	if err := pull(authn.Anonymous); err == nil || !strings.Contains(err.Error(), "401") {
		t.Errorf("anonymous pull: %v", err)
	}
	if n := r.Count("GET", "/blobs/"); n != 1 { // Extract needs no configuration
		t.Errorf("%d blobs were counted", n)
	}
	for text, fault := range map[string]func(*http.Request) Action{
		"500":            OnAll(Action{Status: 500}),
		"reading tar":    OnBlobs(Action{Corrupt: true}),
		"unexpected EOF": OnBlobs(Action{TruncateAfter: 5}),
	} {
		r.SetFault(fault)
		if err := pull(good); err == nil || !strings.Contains(err.Error(), text) {
			t.Errorf("want %s, got %v", text, err)
		}
	}
	if _, err := StartRegistry(RegistryOptions{Addr: "0.0.0.0:0"}); err == nil {
		t.Error("a registry for everybody was started")
	}
}

func TestBusybox(t *testing.T) {
	if !isStatic(busyboxPath) {
		t.Skip("no static busybox on this host: downloading one is not for unit tests")
	}
	img, err := Busybox(t.Context(), t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	cfg, err := img.ConfigFile()
	if err != nil || cfg.Architecture != runtime.GOARCH || cfg.OS != "linux" || len(cfg.Config.Cmd) == 0 {
		t.Errorf("configuration %+v, %v", cfg, err)
	}
	names := map[string]*tar.Header{}
	rc := mutate.Extract(img)
	tr := tar.NewReader(rc)
	for {
		h, err := tr.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		names[strings.TrimSuffix(h.Name, "/")] = h
	}
	if h := names["bin/sh"]; h == nil || h.Linkname != "busybox" {
		t.Errorf("bin/sh: %+v", h)
	}
	if h := names["tmp"]; h == nil || h.Mode != 0o1777 {
		t.Errorf("tmp: %+v", h)
	}
	again, err := Busybox(t.Context(), t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	d1, _ := img.Digest()
	if d2, _ := again.Digest(); d1 != d2 {
		t.Error("two busybox images of one host differ")
	}
}

// A Mac is given a busybox that it cannot run, with the names of its applets.
func TestGivenBusybox(t *testing.T) {
	if !isStatic(busyboxPath) {
		t.Skip("no static busybox on this host: downloading one is not for unit tests")
	}
	content, err := os.ReadFile(busyboxPath)
	if err != nil {
		t.Fatal(err)
	}
	given := filepath.Join(t.TempDir(), "busybox")
	if err := os.WriteFile(given, content, 0o600); err != nil { // not executable
		t.Fatal(err)
	}
	t.Setenv(busyboxVariable, given)
	if _, err := Busybox(t.Context(), t.TempDir()); err == nil {
		t.Error("a busybox without its list was taken")
	}
	if err := os.WriteFile(given+".list", []byte("busybox\nsh\ncat\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	img, err := Busybox(t.Context(), t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	rc := mutate.Extract(img)
	applets := 0
	for tr := tar.NewReader(rc); ; {
		h, err := tr.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if h.Linkname == "busybox" {
			applets++
		}
	}
	if applets != 2 {
		t.Errorf("%d applets, want 2", applets)
	}
	if err := os.WriteFile(given, []byte("#!/bin/sh\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Busybox(t.Context(), t.TempDir()); err == nil {
		t.Error("a script was taken for a static program")
	}
}

func TestChooseSource(t *testing.T) {
	targets := "http://m.invalid/x\tother\tmain\t\nhttp://m.invalid/debian/\tbookworm\tcontrib\t\nhttp://m.invalid/debian/\tbookworm\tmain\t/k.gpg\nhttp://n.invalid/\tbookworm-updates\tmain\t\n"
	s, err := chooseSource([]byte(targets), "bookworm")
	if want := (source{uri: "http://m.invalid/debian", suite: "bookworm", keyring: "/k.gpg"}); err != nil || s != want {
		t.Errorf("got %+v, %v", s, err)
	}
	for _, c := range []string{"", "trixie"} {
		if _, err := chooseSource([]byte(targets), c); err == nil {
			t.Errorf("%q has a source", c)
		}
	}
	if got := osReleaseField([]byte("A=1\nVERSION_CODENAME=\"x\"\n"), "VERSION_CODENAME"); got != "x" {
		t.Errorf("codename %q", got)
	}
}

func TestFollow(t *testing.T) {
	var said bytes.Buffer
	say := func(_ string, args ...any) { said.WriteString(args[0].(string)) }
	err := follow(exec.CommandContext(t.Context(), "sh", "-c", "echo 'I: first'; echo last >&2; exit 3"), say)
	if err == nil || !strings.Contains(err.Error(), "last") || said.String() != "first" {
		t.Errorf("got %v, said %q", err, said.String())
	}
}

func TestSynthetic(t *testing.T) {
	base, err := Small("arm64")
	if err != nil {
		t.Fatal(err)
	}
	missing, err := MissingEntrypoint(base)
	if err != nil {
		t.Fatal(err)
	}
	cfg, err := missing.ConfigFile()
	if err != nil || cfg.Architecture != "arm64" || cfg.Config.Entrypoint[0] != "/no/such/entrypoint" {
		t.Errorf("%+v, %v", cfg, err)
	}
	huge, err := HugeManifest("amd64", 5<<20)
	if err != nil {
		t.Fatal(err)
	}
	if m, err := huge.RawManifest(); err != nil || len(m) < 5<<20 {
		t.Errorf("manifest of %d bytes, %v", len(m), err)
	}
	index, err := Index(map[string]v1.Image{"linux/amd64": base})
	if err != nil {
		t.Fatal(err)
	}
	if m, err := index.IndexManifest(); err != nil || m.Manifests[0].Platform.Architecture != "amd64" {
		t.Errorf("%+v, %v", m, err)
	}
}
