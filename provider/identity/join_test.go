// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package identity

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	certificatesv1 "k8s.io/api/certificates/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/kubernetes/fake"
	"k8s.io/client-go/rest"
	clientgotesting "k8s.io/client-go/testing"
)

// decide makes a cluster that does with each request what decide says, at once.
func decide(decide func(csr *certificatesv1.CertificateSigningRequest) error) *fake.Clientset {
	client := fake.NewClientset()
	client.PrependReactor("create", "certificatesigningrequests", func(action clientgotesting.Action) (bool, runtime.Object, error) {
		csr := action.(clientgotesting.CreateAction).GetObject().(*certificatesv1.CertificateSigningRequest)
		return false, csr, decide(csr) // the tracker keeps it then
	})
	return client
}

var (
	getOptions    = metav1.GetOptions{}
	updateOptions = metav1.UpdateOptions{}
)

// action is what a call returns that must not fail.
func action[T any](t *testing.T, call func() (T, error)) T {
	t.Helper()
	v, err := call()
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// refuse makes a cluster that takes no request.
func refuse(err error) *fake.Clientset {
	client := fake.NewClientset()
	client.PrependReactor("create", "certificatesigningrequests", func(clientgotesting.Action) (bool, runtime.Object, error) { return true, nil, err })
	return client
}

// approve issues what was asked for.
func approve(t *testing.T, ca *authority, as string) func(*certificatesv1.CertificateSigningRequest) error {
	return func(csr *certificatesv1.CertificateSigningRequest) error {
		block, _ := pem.Decode(csr.Spec.Request)
		request, err := x509.ParseCertificateRequest(block.Bytes)
		if err != nil {
			return err
		}
		if as != "" {
			request.Subject.CommonName = as
		}
		now := time.Now()
		csr.Status.Conditions = []certificatesv1.CertificateSigningRequestCondition{{Type: certificatesv1.CertificateApproved, Status: corev1.ConditionTrue}}
		csr.Status.Certificate = ca.sign(t, request.Subject, request.PublicKey, now.Add(-time.Hour), now.Add(time.Hour), x509.ExtKeyUsageClientAuth)
		return nil
	}
}

func denied(csr *certificatesv1.CertificateSigningRequest) error {
	csr.Status.Conditions = []certificatesv1.CertificateSigningRequestCondition{{Type: certificatesv1.CertificateDenied, Status: corev1.ConditionTrue, Reason: "Policy", Message: "no room for you"}}
	return nil
}

func joinOptions(t *testing.T, ca *authority) JoinOptions {
	return JoinOptions{
		Dir: filepath.Join(t.TempDir(), "credentials"), NodeName: "mac-1", Timeout: time.Minute,
		Bootstrap: &rest.Config{Host: "https://192.0.2.1:6443", TLSClientConfig: rest.TLSClientConfig{CAData: ca.pem}},
	}
}

func TestJoin(t *testing.T) {
	ca := newAuthority(t)
	o := joinOptions(t, ca)
	var asked *certificatesv1.CertificateSigningRequest
	client := decide(func(csr *certificatesv1.CertificateSigningRequest) error {
		asked = csr.DeepCopy()
		return approve(t, ca, "")(csr)
	})
	waits := ""
	o.Waiting = func(name string) { waits = name }
	if _, err := Open(o.Dir, Options{}); !errors.Is(err, ErrNotJoined) {
		t.Errorf("before: error %v, want %v", err, ErrNotJoined)
	}
	if err := o.join(t.Context(), client); err != nil {
		t.Fatal(err)
	}
	if asked.Name == "" || waits != asked.Name || asked.Spec.SignerName != certificatesv1.KubeAPIServerClientKubeletSignerName ||
		!slices.Equal(asked.Spec.Usages, []certificatesv1.KeyUsage{certificatesv1.UsageDigitalSignature, certificatesv1.UsageClientAuth}) {
		t.Errorf("asked %s for %s with usages %q, told %q", asked.Name, asked.Spec.SignerName, asked.Spec.Usages, waits)
	}
	own, err := Open(o.Dir, Options{})
	if err != nil {
		t.Fatal(err)
	}
	if own.NodeName != "mac-1" || own.Config().Host != o.Bootstrap.Host || string(own.Authority()) != string(ca.pem) {
		t.Errorf("joined %s as %s", own.Config().Host, own.NodeName)
	}
	var names []string
	entries, err := os.ReadDir(o.Dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		names = append(names, e.Name())
		if info, err := e.Info(); err != nil || info.Mode() != 0o600 {
			t.Errorf("%s has mode %v, %v", e.Name(), info.Mode(), err)
		}
	}
	if want := []string{"ca.crt", "client.pem", "kubeconfig"}; !slices.Equal(names, want) {
		t.Errorf("files are %q, want %q", names, want)
	}
	if info, err := os.Stat(o.Dir); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("the folder has mode %v, %v", info.Mode(), err)
	}
}

// A serving certificate of another cluster is of no use, and would be taken for one of this.
func TestJoinForgetsTheServingCertificate(t *testing.T) {
	ca := newAuthority(t)
	o := joinOptions(t, ca)
	serving := filepath.Join(o.Dir, servingFile)
	if err := errors.Join(os.MkdirAll(o.Dir, 0o700), os.WriteFile(serving, []byte("old"), 0o600)); err != nil {
		t.Fatal(err)
	}
	if err := o.join(t.Context(), decide(approve(t, ca, ""))); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(serving); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("it is still there: %v", err)
	}
}

// What is refused is said with its cause and its remedy, and leaves no identity.
func TestJoinRefused(t *testing.T) {
	ca := newAuthority(t)
	resource := schema.GroupResource{Group: "certificates.k8s.io", Resource: "certificatesigningrequests"}
	for name, tt := range map[string]struct {
		client  *fake.Clientset
		timeout time.Duration
		want    error
		says    []string
		keeps   bool // the key, so that the next try goes on with the request
	}{
		"expired token": {client: refuse(apierrors.NewUnauthorized("Unauthorized")), want: ErrToken, says: []string{"expired", "kubeadm token create"}, keeps: true},
		"no right":      {client: refuse(apierrors.NewForbidden(resource, "", errors.New("no"))), want: ErrForbidden, says: []string{"system:node-bootstrapper"}, keeps: true},
		"denied":        {client: decide(denied), want: ErrDenied, says: []string{"no room for you", "repeat this command"}},
		"nobody decides": {client: decide(func(*certificatesv1.CertificateSigningRequest) error { return nil }), timeout: 100 * time.Millisecond,
			want: ErrNotApproved, says: []string{"kubectl certificate approve vk-firkin-", "repeat this command"}, keeps: true},
		"for somebody else": {client: decide(approve(t, ca, "system:node:mac-2")), says: []string{"mac-2"}, keeps: true},
		"for no node":       {client: decide(approve(t, ca, "admin")), says: []string{"admin"}, keeps: true},
	} {
		t.Run(name, func(t *testing.T) {
			o := joinOptions(t, ca)
			if tt.timeout > 0 {
				o.Timeout = tt.timeout
			}
			err := o.join(t.Context(), tt.client)
			if err == nil || tt.want != nil && !errors.Is(err, tt.want) {
				t.Fatalf("error %v, want %v", err, tt.want)
			}
			for _, says := range tt.says {
				if !strings.Contains(err.Error(), says) {
					t.Errorf("error %q does not say %q", err, says)
				}
			}
			if _, err := Open(o.Dir, Options{}); !errors.Is(err, ErrNotJoined) {
				t.Errorf("afterwards: error %v, want %v", err, ErrNotJoined)
			}
			if _, err := os.Stat(filepath.Join(o.Dir, requestFile)); (err == nil) != tt.keeps {
				t.Errorf("the key of the request: %v, want it kept: %t", err, tt.keeps)
			}
		})
	}
}

// Who repeats the command goes on with the request that waits; one that was denied is not met again.
func TestJoinAgain(t *testing.T) {
	ca := newAuthority(t)
	o := joinOptions(t, ca)
	o.Timeout = 100 * time.Millisecond
	var names []string
	o.Waiting = func(name string) { names = append(names, name) }
	client := decide(func(*certificatesv1.CertificateSigningRequest) error { return nil })
	if err := o.join(t.Context(), client); !errors.Is(err, ErrNotApproved) {
		t.Fatal(err)
	}
	requests := client.CertificatesV1().CertificateSigningRequests()
	edit := func(change func(*certificatesv1.CertificateSigningRequest) error) {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		csr := action(t, func() (*certificatesv1.CertificateSigningRequest, error) {
			return requests.Get(ctx, names[len(names)-1], getOptions)
		})
		if err := change(csr); err != nil {
			t.Fatal(err)
		}
		action(t, func() (*certificatesv1.CertificateSigningRequest, error) {
			return requests.UpdateStatus(ctx, csr, updateOptions)
		})
	}
	edit(denied)
	o.Timeout = time.Minute
	if err := o.join(t.Context(), client); !errors.Is(err, ErrDenied) {
		t.Fatal(err)
	}
	// The fake's watches are of all requests, whatever they ask for.
	if err := requests.Delete(t.Context(), names[0], metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	o.Timeout = 100 * time.Millisecond
	if err := o.join(t.Context(), client); !errors.Is(err, ErrNotApproved) {
		t.Fatal(err)
	}
	edit(approve(t, ca, ""))
	o.Timeout = time.Minute
	if err := o.join(t.Context(), client); err != nil {
		t.Fatal(err)
	}
	if len(names) != 4 || names[0] != names[1] || names[1] == names[2] || names[2] != names[3] {
		t.Errorf("requests were %q: want the same one again, then another, then that again", names)
	}
}

// A cluster that is out of reach for a moment says nothing of the request, with which alone the next try
// gets what is approved meanwhile.
func TestJoinKeepsItsRequest(t *testing.T) {
	o := joinOptions(t, newAuthority(t))
	o.Timeout = 100 * time.Millisecond
	if err := o.join(t.Context(), decide(func(*certificatesv1.CertificateSigningRequest) error { return nil })); !errors.Is(err, ErrNotApproved) {
		t.Fatal(err)
	}
	path := filepath.Join(o.Dir, requestFile)
	before := action(t, func() ([]byte, error) { return os.ReadFile(path) })
	for _, broken := range []error{&net.OpError{Op: "dial", Net: "tcp", Err: syscall.ECONNREFUSED}, io.ErrUnexpectedEOF} {
		err := o.join(t.Context(), refuse(broken))
		if err == nil || !strings.Contains(err.Error(), broken.Error()) {
			t.Errorf("error %v, want %v", err, broken)
		}
		if after := action(t, func() ([]byte, error) { return os.ReadFile(path) }); !slices.Equal(before, after) {
			t.Errorf("after %v it has another key", broken)
		}
	}
}

// A request of an earlier time whose certificate has expired is not gone on with.
func TestJoinAfterAnExpiredRequest(t *testing.T) {
	ca := newAuthority(t)
	o := joinOptions(t, ca)
	var names []string
	o.Waiting = func(name string) { names = append(names, name) }
	client := decide(func(csr *certificatesv1.CertificateSigningRequest) error {
		if len(names) > 0 {
			return approve(t, ca, "")(csr)
		}
		return nil
	})
	o.Timeout = 100 * time.Millisecond
	if err := o.join(t.Context(), client); !errors.Is(err, ErrNotApproved) {
		t.Fatal(err)
	}
	requests := client.CertificatesV1().CertificateSigningRequests()
	csr := action(t, func() (*certificatesv1.CertificateSigningRequest, error) {
		return requests.Get(t.Context(), names[0], getOptions)
	})
	csr.Status.Certificate = ca.sign(t, clientTemplate("mac-1").Subject, newKey(t).Public(), time.Now().Add(-2*time.Hour), time.Now().Add(-time.Hour), x509.ExtKeyUsageClientAuth)
	action(t, func() (*certificatesv1.CertificateSigningRequest, error) {
		return requests.UpdateStatus(t.Context(), csr, updateOptions)
	})
	o.Timeout = time.Minute
	if err := o.join(t.Context(), client); err != nil {
		t.Fatal(err)
	}
	if len(names) != 2 || names[0] == names[1] {
		t.Errorf("requests were %q, want another one", names)
	}
}

func TestJoinIsToldToStop(t *testing.T) {
	o := joinOptions(t, newAuthority(t))
	ctx, cancel := context.WithCancel(t.Context())
	o.Waiting = func(string) { cancel() }
	if err := o.join(ctx, decide(func(*certificatesv1.CertificateSigningRequest) error { return nil })); !errors.Is(err, context.Canceled) {
		t.Errorf("error %v", err)
	}
}

func TestReadBootstrapKubeconfig(t *testing.T) {
	ca := newAuthority(t)
	kubeconfig, err := renderKubeconfig("https://192.0.2.1:6443", "", ca.pem, "x")
	if err != nil {
		t.Fatal(err)
	}
	user := "client-certificate: client.pem\n    client-key: client.pem"
	for name, tt := range map[string]struct {
		text string
		want string
	}{
		"right":             {text: strings.Replace(string(kubeconfig), user, "token: "+testToken, 1)},
		"plain":             {text: strings.Replace(strings.Replace(string(kubeconfig), user, "token: "+testToken, 1), "https:", "http:", 1), want: "want a URL"},
		"without authority": {text: "apiVersion: v1\nkind: Config\nclusters:\n- name: c\n  cluster: {server: 'https://x'}\ncontexts:\n- name: c\n  context: {cluster: c}\ncurrent-context: c\n", want: "certificate-authority"},
		"not one":           {text: "{", want: "bootstrap kubeconfig"},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "k")
			if err := os.WriteFile(path, []byte(tt.text), 0o600); err != nil {
				t.Fatal(err)
			}
			config, err := ReadBootstrapKubeconfig(path)
			if tt.want == "" && (err != nil || config.BearerToken != testToken) || tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)) {
				t.Errorf("read %v, error %v, want %q", config, err, tt.want)
			}
		})
	}
}
