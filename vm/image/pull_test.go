// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package image

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-containerregistry/pkg/authn"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"golang.org/x/sync/errgroup"

	"github.com/vk-firkin/vk-firkin/test/images"
)

func TestPull(t *testing.T) {
	r := testRegistry(t, images.RegistryOptions{})
	cfg := v1.Config{
		Entrypoint: []string{"/bin/a"}, Cmd: []string{"b"}, Env: []string{"A=1", "B=x=y"}, WorkingDir: "/w", User: "1:2",
		StopSignal: "SIGINT", Volumes: map[string]struct{}{"/v": {}, "/u": {}}, ExposedPorts: map[string]struct{}{"80/tcp": {}}, Labels: map[string]string{"l": "m"},
	}
	img, err := images.Image("amd64", cfg, layer(t, images.File("a", 0o644, "one")))
	if err != nil {
		t.Fatal(err)
	}
	ref := push(t, r, "one/two:3", img)
	dir := t.TempDir()
	s := openStore(t, dir, testOptions(r))
	got, err := s.Pull(t.Context(), ref, PullOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer got.Release()
	digest, _ := img.Digest()
	id, _ := img.ConfigName()
	want := &Image{
		Ref: ref, RepoDigest: r.Addr() + "/one/two@" + digest.String(), Digest: digest.String(), ID: id.String(), Architecture: "amd64",
		DiskPath:  filepath.Join(dir, digest.Hex, "disk.ext4"),
		SizeBytes: got.SizeBytes,
		Config: Config{
			Entrypoint: []string{"/bin/a"}, Cmd: []string{"b"}, Env: []string{"A=1", "B=x=y"}, WorkingDir: "/w", User: "1:2",
			StopSignal: "SIGINT", Volumes: []string{"/u", "/v"}, ExposedPorts: []string{"80/tcp"}, Labels: map[string]string{"l": "m"},
		},
	}
	ignore := cmp.FilterPath(func(p cmp.Path) bool { return p.Last().String() == ".release" }, cmp.Ignore())
	if d := cmp.Diff(want, got, ignore); d != "" {
		t.Error(d)
	}
	st, err := os.Stat(got.DiskPath)
	if err != nil || st.Size() != testSlot {
		t.Errorf("disk: %v, %v; want %d bytes", st, err, testSlot)
	}
	if got.SizeBytes <= 0 || got.SizeBytes > 1<<20 {
		t.Errorf("SizeBytes = %d", got.SizeBytes)
	}
	wantClean(t, dir, 1)
}

func TestPullPolicies(t *testing.T) {
	r := testRegistry(t, images.RegistryOptions{})
	first, second := makeImage(t, layer(t, images.File("a", 0o644, "1"))), makeImage(t, layer(t, images.File("a", 0o644, "2")))
	ref := push(t, r, "app:v1", first)
	d1, _ := first.Digest()
	d2, _ := second.Digest()
	dir := t.TempDir()
	s := openStore(t, dir, testOptions(r))
	pull := func(s *Store, ref string, p Policy, want v1.Hash, wantErr error) {
		t.Helper()
		img, err := s.Pull(t.Context(), ref, PullOptions{Policy: p})
		img.Release()
		if !errors.Is(err, wantErr) || err == nil && img.Digest != want.String() {
			t.Errorf("pull %s %s: %v, %v; want %v, %v", p, ref, img, err, want, wantErr)
		}
	}
	pull(s, ref, PullNever, v1.Hash{}, ErrNeverPull)
	if n := r.Count(); n != 0 {
		t.Errorf("Never made %d requests", n)
	}
	pull(s, ref, PullIfNotPresent, d1, nil)
	before := r.Count()
	pull(s, ref, PullIfNotPresent, d1, nil)
	pull(s, ref, PullNever, d1, nil)
	if n := r.Count(); n != before {
		t.Errorf("present image made %d requests", n-before)
	}
	blobs := r.Count("/blobs/")
	pull(s, ref, PullAlways, d1, nil)
	if r.Count() == before {
		t.Error("Always made no request")
	}
	if n := r.Count("/blobs/"); n != blobs {
		t.Errorf("Always fetched %d blobs again", n-blobs)
	}
	push(t, r, "app:v1", second)
	pull(s, ref, PullIfNotPresent, d1, nil)
	pull(s, ref, PullAlways, d2, nil)
	pull(s, ref, PullIfNotPresent, d2, nil)
	pull(s, ref+"@"+d1.String(), PullNever, d1, nil) // by digest, known from a tag's pull; the tag is ignored
	pull(s, r.Addr()+"/app@"+d2.String(), PullAlways, d2, nil)
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	// A restart, and the registry is gone.
	if err := r.Close(); err != nil {
		t.Error(err)
	}
	again := openStore(t, dir, testOptions(r))
	pull(again, ref, PullIfNotPresent, d2, nil)
	pull(again, ref, PullAlways, v1.Hash{}, ErrUnavailable)
	pull(again, r.Addr()+"/other", PullIfNotPresent, v1.Hash{}, ErrUnavailable)
	pull(again, ref, "Sometimes", v1.Hash{}, ErrInvalidOptions)
	wantClean(t, dir, 2)
}

func TestPullPlatform(t *testing.T) {
	r := testRegistry(t, images.RegistryOptions{})
	index, err := images.Index(map[string]v1.Image{"linux/amd64": small(t, "amd64"), "linux/arm64/v8": small(t, "arm64"), "windows/amd64": small(t, "windows")})
	if err != nil {
		t.Fatal(err)
	}
	multi, err := r.PushIndex("multi", index)
	if err != nil {
		t.Fatal(err)
	}
	single := push(t, r, "single", small(t, "arm64"))
	liar, err := r.PushIndex("liar", mutate.AppendManifests(index, mutate.IndexAddendum{Add: small(t, "s390x"), Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: "riscv64"}}}))
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct{ ref, arch, want string }{
		{multi, "amd64", ""},
		{multi, "arm64", ""},
		{single, "arm64", ""},
		{single, "amd64", "there is linux/arm64, this node wants linux/amd64"},
		{multi, "s390x", "there is linux/amd64, linux/arm64/v8, windows/amd64, this node wants linux/s390x"},
		{liar, "riscv64", "there is linux/s390x, this node wants linux/riscv64"},
	} {
		opts := testOptions(r)
		opts.Arch = tt.arch
		s := openStore(t, t.TempDir(), opts)
		img, err := s.Pull(t.Context(), tt.ref, PullOptions{})
		if tt.want == "" {
			want, _ := small(t, tt.arch).Digest()
			if err != nil || img.Digest != want.String() || img.Architecture != tt.arch {
				t.Errorf("%s for %s: %+v, %v", tt.ref, tt.arch, img, err)
			}
			continue
		}
		if !errors.Is(err, ErrPlatform) || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s for %s: %v, want ErrPlatform: %s", tt.ref, tt.arch, err, tt.want)
		}
	}
	if n := r.Count("/blobs/" + "sha256:"); n == 0 {
		t.Error("no blob was fetched at all")
	}
}

func TestPullAuth(t *testing.T) {
	r := testRegistry(t, images.RegistryOptions{User: "u", Password: "p"})
	ref := push(t, r, "private/app", small(t, "amd64"))
	secret := func(user, password string) Secret {
		auth := base64.StdEncoding.EncodeToString([]byte(user + ":" + password))
		return Secret{Type: SecretTypeDockerConfigJSON, Data: fmt.Appendf(nil, `{"auths":{%q:{"auth":%q}}}`, r.Addr(), auth)}
	}
	for _, tt := range []struct {
		name    string
		secrets []Secret
		want    error
	}{
		{"none", nil, ErrUnauthorized},
		{"wrong", []Secret{secret("u", "x")}, ErrUnauthorized},
		{"right", []Secret{secret("u", "p")}, nil},
		{"wrong, then right", []Secret{secret("u", "x"), secret("u", "p")}, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			k, err := KeychainFromSecrets(tt.secrets...)
			if err != nil {
				t.Fatal(err)
			}
			dir := t.TempDir()
			img, err := openStore(t, dir, testOptions(r)).Pull(t.Context(), ref, PullOptions{Auth: k})
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
	k := authn.NewMultiKeychain() // any keychain will do
	if _, err := openStore(t, t.TempDir(), testOptions(r)).Pull(t.Context(), ref, PullOptions{Auth: k}); !errors.Is(err, ErrUnauthorized) {
		t.Errorf("foreign keychain: %v", err)
	}
}

func TestPlainHTTPOnlyWhereAllowed(t *testing.T) {
	r := testRegistry(t, images.RegistryOptions{})
	ref := push(t, r, "app", small(t, "amd64"))
	opts := testOptions(r)
	opts.InsecureRegistries = []string{"example.invalid"}
	_, err := openStore(t, t.TempDir(), opts).Pull(t.Context(), ref, PullOptions{})
	if !errors.Is(err, ErrUnavailable) || !strings.Contains(err.Error(), "not among the insecure registries") {
		t.Errorf("got %v", err)
	}
	if n := r.Count("manifests"); n != 0 {
		t.Errorf("%d manifests were asked for in plain HTTP", n)
	}
}

// TestRegistryFaults drives every kind of misbehaviour and then, with the registry
// well again, pulls from the same store.
func TestRegistryFaults(t *testing.T) {
	manifests := func(a images.Action) func(*http.Request) images.Action {
		return func(req *http.Request) images.Action {
			if images.IsManifest(req.URL.Path) {
				return a
			}
			return images.Action{}
		}
	}
	for _, tt := range []struct {
		name  string
		fault func(*http.Request) images.Action
		want  error
		text  string
	}{
		{"hangs", images.OnAll(images.Action{Hang: true}), ErrUnavailable, "timeout"},
		{"manifest hangs", manifests(images.Action{Hang: true}), ErrUnavailable, "timeout"},
		{"manifest stalls", manifests(images.Action{StallAfter: 10}), ErrUnavailable, "sent nothing for"},
		{"blob hangs", images.OnBlobs(images.Action{Hang: true}), ErrUnavailable, "timeout"},
		{"blob stalls", images.OnBlobs(images.Action{StallAfter: 10}), ErrUnavailable, "sent nothing for"},
		{"500", images.OnAll(images.Action{Status: 500}), ErrUnavailable, "500"},
		{"blob 503", images.OnBlobs(images.Action{Status: 503}), ErrUnavailable, "503"},
		{"blob 404", images.OnBlobs(images.Action{Status: 404}), ErrNotFound, "404"},
		{"blob 403", images.OnBlobs(images.Action{Status: 403}), ErrUnauthorized, "403"},
		{"manifest 404", manifests(images.Action{Status: 404}), ErrNotFound, "404"},
		{"corrupt blob", images.OnBlobs(images.Action{Corrupt: true}), ErrCorrupt, "has the content of"},
		{"corrupt manifest", manifests(images.Action{Corrupt: true}), ErrCorrupt, ""},
		{"truncated blob", images.OnBlobs(images.Action{TruncateAfter: 10}), ErrUnavailable, "unexpected EOF"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel() // the hanging ones wait for their timeouts
			r := testRegistry(t, images.RegistryOptions{})
			ref := push(t, r, "app", small(t, "amd64"))
			opts := testOptions(r)
			// Short, yet long enough for a healthy registry on a busy machine.
			opts.Timeouts = Timeouts{Header: time.Second, Stall: time.Second}
			dir := t.TempDir()
			s := openStore(t, dir, opts)
			r.SetFault(tt.fault)
			_, err := s.Pull(t.Context(), ref, PullOptions{})
			if !errors.Is(err, tt.want) || !strings.Contains(err.Error(), tt.text) {
				t.Errorf("got %v, want %v: %s", err, tt.want, tt.text)
			}
			wantClean(t, dir, 0)
			r.SetFault(nil)
			img, err := s.Pull(t.Context(), ref, PullOptions{})
			if err != nil {
				t.Fatalf("with the registry well again: %v", err)
			}
			img.Release()
			wantClean(t, dir, 1)
		})
	}
}

// TestHiccup: one failure each, in turn, of every request of a pull is survived.
func TestHiccup(t *testing.T) {
	for _, a := range []images.Action{{Status: 500}, {TruncateAfter: 1}} {
		r := testRegistry(t, images.RegistryOptions{})
		ref := push(t, r, "app", small(t, "amd64"))
		failed := map[string]bool{}
		r.SetFault(func(req *http.Request) images.Action {
			if key := req.Method + req.URL.Path; images.IsBlob(req.URL.Path) && !failed[key] {
				failed[key] = true
				return a
			}
			return images.Action{}
		})
		img, err := openStore(t, t.TempDir(), testOptions(r)).Pull(t.Context(), ref, PullOptions{})
		img.Release()
		if err != nil || len(failed) != 2 {
			t.Errorf("%+v: %v after %d failures, want none after 2", a, err, len(failed))
		}
	}
}

func TestBadReferences(t *testing.T) {
	s := openStore(t, t.TempDir(), testOptions(nil))
	for _, ref := range []string{"", "UPPER", "a b", "http://x/y", "x@sha256:12", "x:" + strings.Repeat("t", 200), strings.Repeat("a/", 1000), "x@sha512:" + strings.Repeat("0", 128), "../x", "x\x00", "a/../b", "a//b", "-a", "a-", "h..x/a", "example.invalid/../b"} {
		if _, err := s.Pull(t.Context(), ref, PullOptions{}); !errors.Is(err, ErrInvalidReference) {
			t.Errorf("%.40q: %v, want ErrInvalidReference", ref, err)
		}
	}
}

func TestNormalize(t *testing.T) {
	for in, want := range map[string]string{
		"busybox":               "docker.io/library/busybox:latest",
		"busybox:1":             "docker.io/library/busybox:1",
		"a/b":                   "docker.io/a/b:latest",
		"example.invalid/a":     "example.invalid/a:latest",
		"example.invalid:5/a:b": "example.invalid:5/a:b",
		"busybox:1@sha256:" + strings.Repeat("a", 64): "docker.io/library/busybox@sha256:" + strings.Repeat("a", 64),
	} {
		if got, err := Normalize(in); err != nil || got != want {
			t.Errorf("Normalize(%q) = %q, %v; want %q", in, got, err, want)
		}
	}
}

func TestConcurrentPullsShareTheWork(t *testing.T) {
	r := testRegistry(t, images.RegistryOptions{})
	ref := push(t, r, "app", small(t, "amd64"))
	r.SetFault(images.OnBlobs(images.Action{Delay: 50 * time.Millisecond}))
	dir := t.TempDir()
	s := openStore(t, dir, testOptions(r))
	var g errgroup.Group
	for range 20 {
		g.Go(func() error {
			img, err := s.Pull(t.Context(), ref, PullOptions{})
			img.Release()
			return err
		})
	}
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}
	if n := r.Count("GET", "/blobs/"); n != 2 {
		t.Errorf("%d blobs were fetched for a configuration and a layer", n)
	}
	infos, err := s.List()
	if err != nil || len(infos) != 1 || infos[0].Pinned {
		t.Errorf("after all releases: %+v, %v", infos, err)
	}
	wantClean(t, dir, 1)
}

// TestWaitersLeave: work goes on for who still waits, and ends when none does.
func TestWaitersLeave(t *testing.T) {
	r := testRegistry(t, images.RegistryOptions{})
	ref := push(t, r, "app", small(t, "amd64"))
	reached, gate, gone := make(chan struct{}, 16), make(chan struct{}), make(chan struct{}, 16)
	r.SetFault(func(req *http.Request) images.Action {
		if images.IsBlob(req.URL.Path) {
			reached <- struct{}{}
			select {
			case <-gate:
			case <-req.Context().Done():
				gone <- struct{}{}
			}
		}
		return images.Action{}
	})
	dir := t.TempDir()
	s := openStore(t, dir, testOptions(r))
	start := func(ctx context.Context) chan error {
		c := make(chan error, 1)
		go func() {
			img, err := s.Pull(ctx, ref, PullOptions{})
			img.Release()
			c <- err
		}()
		return c
	}
	why := errors.New("the pod is gone")
	ctx1, cancel1 := context.WithCancelCause(t.Context())
	one, two := start(ctx1), start(t.Context())
	<-reached
	cancel1(why)
	if err := <-one; !errors.Is(err, why) {
		t.Errorf("who left got %v", err)
	}
	close(gate)
	if err := <-two; err != nil {
		t.Errorf("who stayed got %v", err)
	}

	// Now everybody leaves.
	ref = push(t, r, "app:2", makeImage(t, layer(t, images.File("x", 0o644, "y"))))
	gate = make(chan struct{})
	for len(reached) > 0 { // the layer's request of the first pull
		<-reached
	}
	ctx1, cancel1 = context.WithCancelCause(t.Context())
	one = start(ctx1)
	<-reached
	cancel1(why)
	if err := <-one; !errors.Is(err, why) {
		t.Errorf("who left got %v", err)
	}
	select {
	case <-gone:
	case <-time.After(10 * time.Second): // well below the registry's timeouts
		t.Error("the work goes on although nobody waits for it")
	}
	s.pulls.close() // returns when the work has ended
	s.builds.close()
	wantClean(t, dir, 1)
	if _, err := s.Pull(t.Context(), ref, PullOptions{}); !errors.Is(err, ErrClosed) {
		t.Errorf("pull after close: %v", err)
	}
}

func TestCloseEndsPulls(t *testing.T) {
	r := testRegistry(t, images.RegistryOptions{})
	ref := push(t, r, "app", small(t, "amd64"))
	reached := make(chan struct{}, 16)
	r.SetFault(func(req *http.Request) images.Action {
		reached <- struct{}{}
		return images.Action{Hang: true}
	})
	s := openStore(t, t.TempDir(), testOptions(r))
	done := make(chan error, 1)
	go func() {
		_, err := s.Pull(context.Background(), ref, PullOptions{})
		done <- err
	}()
	<-reached
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	if err := <-done; !errors.Is(err, ErrClosed) {
		t.Errorf("got %v, want ErrClosed", err)
	}
}
