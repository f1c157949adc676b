// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package guesttest_test

import (
	"strings"
	"testing"

	"connectrpc.com/connect"

	"github.com/vk-firkin/vk-firkin/vm/guest/agentv1"
	"github.com/vk-firkin/vk-firkin/vm/guest/guesttest"
)

// TestLayers: a layer keeps what one container wrote for those that have it below.
func TestLayers(t *testing.T) {
	a, c := boot(t, guesttest.Options{})
	setup(t, c)
	add := func(id, writable string, lower ...string) error {
		_, err := c.Containers.CreateContainer(t.Context(), connect.NewRequest(&agentv1.CreateContainerRequest{
			Id: id, Args: []string{"do", "write /greeting hello", "cat /greeting"}, WritableLayer: writable, LowerLayers: lower,
		}))
		return err
	}
	remove := func(id string) {
		t.Helper()
		if _, err := c.Containers.RemoveContainer(t.Context(), connect.NewRequest(&agentv1.RemoveContainerRequest{Id: id})); err != nil {
			t.Fatal(err)
		}
	}
	want := func(what string, err error, code connect.Code) {
		t.Helper()
		if connect.CodeOf(err) != code {
			t.Errorf("%s: %v, want %v", what, err, code)
		}
	}
	want("an unknown layer below", add("c", "", "template"), connect.CodeNotFound)
	if err := add("writer", "template"); err != nil {
		t.Fatal(err)
	}
	start(t, c, "writer")
	awaitExit(t, c, "writer")
	want("a second writer", add("c", "template"), connect.CodeFailedPrecondition)
	want("below while it is written", add("c", "", "template"), connect.CodeFailedPrecondition)
	remove("writer")
	if err := add("reader", "", "template"); err != nil {
		t.Fatal(err)
	}
	start(t, c, "reader")
	if got, _ := output(t, c, "reader", 0); got != "hello\n" {
		t.Errorf("output %q", got)
	}
	awaitExit(t, c, "reader")
	want("a writer of what lies below another", add("c", "template"), connect.CodeFailedPrecondition)
	if err := add("second", "", "template"); err != nil {
		t.Errorf("a second reader: %v", err)
	}
	remove("reader")
	remove("second")
	// What could not be created keeps nothing.
	create(t, c, &agentv1.CreateContainerRequest{Id: "start-error", Args: []string{"no-such-program"}, WritableLayer: "template"})
	remove("start-error")
	if err := add("again", "template"); err != nil {
		t.Errorf("a writer after all are gone: %v", err)
	}
	remove("again")
	for _, bad := range []*agentv1.CreateContainerRequest{
		{Id: "c", Args: []string{"env"}, WritableLayer: ".."},
		{Id: "c", Args: []string{"env"}, WritableLayer: "a/b"},
		{Id: "c", Args: []string{"env"}, LowerLayers: []string{""}},
		{Id: "c", Args: []string{"env"}, LowerLayers: []string{"template", "template"}},
		{Id: "c", Args: []string{"env"}, WritableLayer: "template", LowerLayers: []string{"template"}},
		{Id: "c", Args: []string{"env"}, LowerLayers: strings.Split("a b c d e f g h i", " ")},
	} {
		_, err := c.Containers.CreateContainer(t.Context(), connect.NewRequest(bad))
		want(bad.String(), err, connect.CodeInvalidArgument)
	}

	// A restored machine has the layers.
	clone := a.Clone(guesttest.Options{})
	defer func() { _ = clone.Close() }()
	cc := dial(t, clone)
	setup(t, cc)
	create(t, cc, &agentv1.CreateContainerRequest{Id: "pod", Args: []string{"cat", "/greeting"}, LowerLayers: []string{"template"}})
	start(t, cc, "pod")
	if got, _ := output(t, cc, "pod", 0); got != "hello\n" {
		t.Errorf("output in the clone %q", got)
	}
}

// TestSetupPodBesideTemplate: the pod of a restored machine is not the template's.
func TestSetupPodBesideTemplate(t *testing.T) {
	_, c := boot(t, guesttest.Options{})
	set := func(hostname string) error {
		_, err := c.Containers.SetupPod(t.Context(), connect.NewRequest(&agentv1.SetupPodRequest{Hostname: hostname}))
		return err
	}
	if err := set("template"); err != nil {
		t.Fatal(err)
	}
	create(t, c, &agentv1.CreateContainerRequest{Id: "template.start", Args: []string{"hang"}})
	if err := set("pod"); err != nil {
		t.Errorf("beside a template's container: %v", err)
	}
	create(t, c, &agentv1.CreateContainerRequest{Id: "pod", Args: []string{"hang"}})
	if err := set("other"); connect.CodeOf(err) != connect.CodeFailedPrecondition {
		t.Errorf("beside a pod's container: %v", err)
	}
}
