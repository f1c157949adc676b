// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package hack

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// What the release is made of, by what the script calls; what came of it is for hack/releasecheck.
func TestRelease(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		env   []string
		lacks string // is removed from the checkout
		code  int
		says  []string
		calls []string
		never []string
	}{
		"linux leaves the Mac's out, and says so": {
			says: []string{"left out: darwin/arm64, which only a Mac can build and sign"}, never: []string{"codesign"},
			calls: []string{"go build ... [linux cgo 0]", "go build ... [linux cgo 0]", "go run ./hack/releasecheck"},
		},
		"one target": {
			env:  []string{"TARGETS=linux/arm64"},
			says: []string{"vk-firkin-v1-linux-arm64.tar.gz", "SHA256SUMS"},
			calls: []string{
				"go run ./hack/licences -notices bin/release/THIRD-PARTY-LICENCES.txt ./cmd/vk-firkin ./cmd/firkin-agent",
				"go build -trimpath -ldflags -s -w -X main.version=v1 ... [linux cgo 0]",
				"go tool cyclonedx-gomod bin -json -version v1 -output / ... /bin/release/vk-firkin-v1-linux-arm64.cdx.json /",
				"go tool cyclonedx-gomod bin -json -version v1 -output / ... /bin/release/guest-kit-v1-arm64.cdx.json /",
				"go run ./hack/releasecheck --dir bin/release --version v1",
			},
			never: []string{"codesign"},
		},
		"a Mac's is not made on linux":         {env: []string{"TARGETS=darwin/arm64"}, code: 1, says: []string{"darwin/arm64 needs Apple's compiler"}, never: []string{"go"}},
		"nor is what nobody has heard of":      {env: []string{"TARGETS=plan9/arm64"}, code: 1, says: []string{"no such target: plan9/arm64"}, never: []string{"go"}},
		"all of linux wants both kits":         {lacks: "bin/guest/amd64", code: 1, says: []string{"the guest kit in bin/guest/amd64 is missing", "make guest on Debian"}, never: []string{"go"}},
		"a kit without its licences is none":   {env: []string{"TARGETS=linux/arm64"}, lacks: "bin/guest/arm64/NOTICES.txt", code: 1, says: []string{"had no NOTICES.txt"}, never: []string{"go"}},
		"what the check refuses is no success": {env: []string{"TARGETS=linux/arm64", "FAILS=go run ./hack/releasecheck"}, code: 1, says: []string{"is told to fail"}},
		"a Mac's has cgo and is signed": {
			env: []string{"OS=Darwin", "TARGETS=darwin/arm64"}, lacks: "bin/guest/.cache",
			says: []string{"left out:", "the bill of materials of the guest kit for arm64"},
			calls: []string{
				"go build ... [darwin cgo 1]", "codesign --force --sign - --entitlements hack/vz.entitlements bin/release/vk-firkin-v1-darwin-arm64/bin/vk-firkin",
				"go tool cyclonedx-gomod ... vk-firkin-v1-darwin-arm64.cdx.json", // of the program as it was signed
			},
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newScene(t, filepath.Join("release", "release.sh"), "go", "codesign")
			if sum, err := exec.LookPath("sha256sum"); err == nil {
				err = os.Symlink(sum, filepath.Join(s.path, "sha256sum"))
				if err != nil {
					t.Fatal(err)
				}
			} else if sum, err := exec.LookPath("shasum"); err != nil || os.Symlink(sum, filepath.Join(s.path, "shasum")) != nil {
				t.Fatal("this host has neither sha256sum nor shasum")
			}
			if tt.lacks != "" {
				if err := os.RemoveAll(filepath.Join(s.root, tt.lacks)); err != nil {
					t.Fatal(err)
				}
			}
			out, calls, code := s.run(t, append([]string{"VERSION=v1", "KUBECONFIG="}, tt.env...))
			if code != tt.code {
				t.Errorf("exit code %d, want %d: %s", code, tt.code, out)
			}
			for _, want := range tt.says {
				if !strings.Contains(out, want) {
					t.Errorf("it does not say %q: %s", want, out)
				}
			}
			inOrder(t, calls, tt.calls...)
			for _, prefix := range tt.never {
				if count(calls, prefix) > 0 {
					t.Errorf("calls begin with %q:\n%s", prefix, strings.Join(calls, "\n"))
				}
			}
		})
	}
}
