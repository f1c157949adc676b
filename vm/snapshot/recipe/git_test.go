// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package recipe

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// TestCheckoutWithGit carries out the plans of a checkout with the host's git, as the
// guest does, on a repository of the host.
func TestCheckoutWithGit(t *testing.T) {
	if _, err := exec.LookPath("git"); err != nil {
		t.Skip("git is not installed")
	}
	dir := t.TempDir()
	home := filepath.Join(dir, "home")
	repository := filepath.Join(dir, "repo.git")
	env := append(os.Environ(), "HOME="+home, "GIT_CONFIG_NOSYSTEM=1", "GIT_AUTHOR_NAME=a", "GIT_AUTHOR_EMAIL=a@example.com", "GIT_COMMITTER_NAME=a", "GIT_COMMITTER_EMAIL=a@example.com")
	git := func(args ...string) string {
		t.Helper()
		cmd := exec.Command("git", append([]string{"-C", repository}, args...)...)
		cmd.Env = env
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("git %v: %v\n%s", args, err, out)
		}
		return strings.TrimSpace(string(out))
	}
	for _, d := range []string{home, repository} {
		if err := os.Mkdir(d, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	git("init", "--quiet", "--initial-branch=main")
	commit := func(content string) string {
		if err := os.WriteFile(filepath.Join(repository, "file"), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		git("add", "file")
		git("commit", "--quiet", "-m", content)
		return git("rev-parse", "HEAD")
	}
	first := commit("first")
	git("tag", "-m", "tag", "v1")
	commit("second")
	git("switch", "--quiet", "-c", "feature/x", first)
	commit("feature")
	git("switch", "--quiet", "main")

	// A hook of the user's that must not run.
	template := filepath.Join(dir, "template")
	hook := filepath.Join(template, "hooks", "post-checkout")
	if err := os.MkdirAll(filepath.Dir(hook), 0o700); err != nil {
		t.Fatal(err)
	}
	ran := filepath.Join(dir, "hook-ran")
	if err := os.WriteFile(hook, []byte("#!/bin/sh\ntouch "+ran+"\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	env = append(env, "GIT_TEMPLATE_DIR="+template)

	for _, test := range []struct{ name, ref, want string }{
		{"branch", "main", "second"},
		{"branch with a slash", "feature/x", "feature"},
		{"tag", "v1", "first"},
		{"commit", first, "first"},
		{"abbreviated commit", first[:8], "first"},
		{"no such ref", "nothing", ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			target := filepath.Join(t.TempDir(), "a", "checkout")
			c := Checkout{Repository: "file://" + repository, Ref: test.ref, Directory: target}
			if err := checkRepository(c.Repository); err != nil {
				t.Fatal(err)
			}
			output, ok := "", false
		plans:
			for _, p := range c.plans() {
				for _, command := range p {
					cmd := exec.CommandContext(t.Context(), command.Args[0], command.Args[1:]...)
					cmd.Env, cmd.Dir = slices.Concat(env, gitEnv), "/"
					out, err := cmd.CombinedOutput()
					if output = string(out); err != nil {
						if !fallBack(output) {
							break plans
						}
						continue plans
					}
				}
				ok = true
				break
			}
			got, _ := os.ReadFile(filepath.Join(target, "file"))
			if string(got) != test.want || ok != (test.want != "") {
				t.Errorf("content %q, want %q; git says %q", got, test.want, output)
			}
			if !ok && !strings.Contains(output, "nothing") {
				t.Errorf("git does not say what is missing: %q", output)
			}
		})
	}
	if _, err := os.Stat(ran); err == nil {
		t.Error("a hook ran")
	}
}
