// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package recipe

import (
	"context"
	"net/url"
	"regexp"
	"strings"
)

// gitEnv keeps git from asking and from running what it finds. The recipe's own
// environment comes after it and may say otherwise.
var gitEnv = []string{
	"GIT_TERMINAL_PROMPT=0",
	"GIT_ASKPASS=true",
	"GIT_SSH_COMMAND=ssh -oBatchMode=yes",
	"GIT_ALLOW_PROTOCOL=" + strings.Join(schemes, ":"),
	"LC_ALL=C",
}

// commitName is a commit that needs no look-up.
var commitName = regexp.MustCompile(`^([0-9a-f]{40}|[0-9a-f]{64})$`)

// gitCommand is git without hooks.
func gitCommand(args ...string) Command {
	return Command{Args: append([]string{"git", "-c", "core.hooksPath=/dev/null", "-c", "advice.detachedHead=false"}, args...), WorkingDir: "/"}
}

// plan is a way to a checkout: commands, one after the other.
type plan []Command

// plans are the ways to a checkout, the cheapest first. Pure.
func (c Checkout) plans() []plan {
	clone := func(options ...string) Command {
		args := append([]string{"clone", "--quiet", "--no-checkout"}, options...)
		return gitCommand(append(args, "--", c.Repository, c.Directory)...)
	}
	checkout := func(ref string) Command {
		return gitCommand("-C", c.Directory, "checkout", "--quiet", "--detach", ref, "--")
	}
	full := plan{clone(), checkout(c.Ref)}
	if commitName.MatchString(c.Ref) {
		// Not every server gives a commit that is not the end of a branch.
		return []plan{full}
	}
	// --branch takes tags as well.
	return []plan{{clone("--depth=1", "--single-branch", "--branch="+c.Ref), checkout("HEAD")}, full}
}

// checkout clones the repository. What a shallow clone cannot do, because the ref is an
// abbreviated commit or the server has only files, a full one is tried for.
func (m *machine) checkout(ctx context.Context) error {
	c := m.recipe.Checkout
	if c == nil {
		return nil
	}
	m.begin(StepCheckout, 0)
	what := "checkout of " + redacted(c.Repository) + " at " + c.Ref
	plans := c.plans()
next:
	for i, p := range plans {
		for _, command := range p {
			st, output, err := m.run(ctx, "checkout", command, m.env(gitEnv))
			if err != nil {
				return m.fault(ctx, StepCheckout, 0, what, output, err)
			}
			how := ended(st)
			if how == "" {
				continue
			}
			if i+1 < len(plans) && fallBack(output) {
				continue next
			}
			if st.GetReason() == "StartError" {
				how += "; the template's image must have git"
			}
			return m.failed(ctx, StepCheckout, 0, what+" "+how, output)
		}
		return nil
	}
	return nil
}

// fallBack tells from what git says whether another kind of clone may succeed. git
// deletes what a clone that failed has made.
func fallBack(output string) bool {
	for _, s := range []string{"not found in upstream", "shallow", "does not support"} {
		if strings.Contains(output, s) {
			return true
		}
	}
	return false
}

// redacted is a repository without a password.
func redacted(repository string) string {
	u, err := url.Parse(repository)
	if err != nil {
		return "the repository"
	}
	return u.Redacted()
}
