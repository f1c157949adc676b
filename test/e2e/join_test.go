// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

//go:build e2e

package e2e

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/pem"
	"fmt"
	"math/big"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	certificatesv1 "k8s.io/api/certificates/v1"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/client-go/util/cert"
	"k8s.io/client-go/util/keyutil"

	"github.com/vk-firkin/vk-firkin/test/cluster"
)

// A host joins with a token, as a user would type it; its node runs a pod that is read and entered
// over the certificate that the cluster issued for it, may do what a node needs and nothing beyond, and renews its
// certificate while it runs.
func TestJoin(t *testing.T) {
	needsEmbedded(t, "the story issues a short certificate with the key of the cluster's authority")
	token, hash := bootstrapToken(t), authorityHash(t)
	name := "j" + token[:5] // a name is given once in a cluster's life
	ns := namespace(t)
	dir := nodeDir(t)
	state := filepath.Join(dir, name, "s")
	server := strings.TrimSpace(kubectl(t, "config", "view", "--minify", "-o", "jsonpath={.clusters[0].cluster.server}"))

	// What was typed wrong is said, and nothing is left that a node would run with.
	for _, tt := range []struct{ token, hash, says string }{
		{token[:7] + "0000000000000000", hash, "compare what was typed"},
		{token, "sha256:" + strings.Repeat("0", 64), hash},
	} {
		out, err := join(t, server, "--token", tt.token, "--discovery-token-ca-cert-hash", tt.hash, "--node-name", name, "--state-dir", state)
		if err == nil || !strings.Contains(out, tt.says) {
			t.Errorf("joining with a wrong secret or hash: %v, want %q in %s", err, tt.says, out)
		}
	}
	// A token makes no node of one that is there: it would have what that one's pods have.
	if out, err := join(t, server, "--token", token, "--discovery-token-ca-cert-hash", hash, "--node-name", node.Name, "--state-dir", filepath.Join(dir, "thief"), "--timeout", "3s"); err == nil ||
		!strings.Contains(out, "was not approved in time") || !strings.Contains(out, "kubectl certificate approve") {
		t.Errorf("a token joined as %s: %v: %s", node.Name, err, out)
	}
	eventually(t, waitShort, "an event says why it waits, and what to do", func() error {
		out, err := tryKubectl(t, "get", "events", "-A", "--field-selector", "reason=WaitsForApproval", "-o", "jsonpath={.items[*].message}")
		if err == nil && (!strings.Contains(out, "Node "+node.Name+" exists already") || !strings.Contains(out, "kubectl certificate approve vk-firkin-")) {
			err = fmt.Errorf("events say %q", out)
		}
		return err
	})
	out, err := join(t, server, "--token", token, "--discovery-token-ca-cert-hash", hash, "--node-name", name, "--state-dir", state)
	if err != nil || !strings.Contains(out, "Joined as node "+name) {
		t.Fatalf("join: %v: %s", err, out)
	}
	if out, err := join(t, server, "--token", token, "--discovery-token-ca-cert-hash", hash, "--state-dir", state); err == nil || !strings.Contains(out, "--replace") {
		t.Errorf("joining once more: %v: %s", err, out)
	}
	// Nor of one that has joined and is not there yet.
	if out, err := join(t, server, "--token", token, "--discovery-token-ca-cert-hash", hash, "--node-name", name, "--state-dir", filepath.Join(dir, "second"), "--timeout", "3s"); err == nil ||
		!strings.Contains(out, "was not approved in time") {
		t.Errorf("another host joined as %s: %v: %s", name, err, out)
	}

	n := startOwnNode(t, cluster.NodeOptions{Name: name, StateDir: state, Joined: true})
	apply(t, secretPod(ns, "own", name)+"---\n"+secretPod(ns, "foreign", node.Name))
	waitRunning(t, ns, "own")
	inAndOut := func() {
		t.Helper()
		eventually(t, time.Minute, "the pod is entered over the certificate that was asked for", func() error {
			out, err := tryKubectl(t, "exec", "-n", ns, "own", "--", "cat", "/secret/word")
			if err == nil && out != "own" {
				err = fmt.Errorf("exec says %q", out)
			}
			return err
		})
		if out := kubectl(t, "logs", "-n", ns, "own"); out != "up\n" {
			t.Errorf("logs are %q", out)
		}
	}
	inAndOut()
	serving := readLeaf(t, filepath.Join(state, "credentials", "serving.pem"))
	if serving.VerifyHostname("127.0.0.1") != nil || serving.VerifyHostname(name) != nil || serving.Subject.CommonName != "system:node:"+name {
		t.Errorf("the serving certificate is for %s, %v and %v", serving.Subject, serving.DNSNames, serving.IPAddresses)
	}
	kubeconfig := filepath.Join(state, "credentials", "kubeconfig")
	t.Run("rights", func(t *testing.T) { testRights(t, ns, name, kubeconfig) })

	// A certificate that is old when the node starts is renewed while it runs.
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := n.Terminate(ctx); err != nil {
		t.Fatal(err)
	}
	client := filepath.Join(state, "credentials", "client.pem")
	old := issueShort(t, name, client)
	if err := n.Start(ctx); err != nil {
		t.Fatal(err)
	}
	eventually(t, time.Minute, "the certificate is renewed", func() error {
		if now := readLeaf(t, client); now.SerialNumber.Cmp(old.SerialNumber) == 0 {
			return fmt.Errorf("it is still the one that expires %s", old.NotAfter)
		}
		return nil
	})
	if left := time.Until(old.NotAfter); left > 0 {
		t.Logf("renewed %s before the old one ends", left.Round(time.Second))
		select {
		case <-time.After(left):
		case <-n.Exited():
		}
	}
	// Whatever had gone on with the old one is refused by now.
	inAndOut()
	kubectl(t, "delete", "pod", "-n", ns, "own")
	waitGone(t, ns, "own")
	if got := metric(t, n, "vk_firkin_certificate_renew_failures_total", `certificate="client"`); got != 0 {
		t.Errorf("%v renewals failed", got)
	}
}

// join runs the command and returns all that it says.
func join(t *testing.T, args ...string) (string, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	out, err := exec.CommandContext(ctx, filepath.Join(os.Getenv("FIRKIN_BIN_DIR"), "vk-firkin"), append([]string{"join"}, args...)...).CombinedOutput()
	return string(out), err
}

// bootstrapToken makes a token for an hour.
func bootstrapToken(t *testing.T) string {
	t.Helper()
	secret := make([]byte, 11)
	if _, err := rand.Read(secret); err != nil {
		t.Fatal(err)
	}
	digits := hex.EncodeToString(secret)
	apply(t, fmt.Sprintf(`
apiVersion: v1
kind: Secret
metadata: {name: bootstrap-token-%s, namespace: kube-system}
type: bootstrap.kubernetes.io/token
stringData:
  token-id: %q
  token-secret: %q
  expiration: %q
  usage-bootstrap-authentication: "true"
  usage-bootstrap-signing: "true"
  auth-extra-groups: system:bootstrappers:vk-firkin
`, digits[:6], digits[:6], digits[6:], time.Now().Add(time.Hour).UTC().Format(time.RFC3339)))
	return digits[:6] + "." + digits[6:]
}

func readLeaf(t *testing.T, path string) *x509.Certificate {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	certs, err := cert.ParseCertsPEM(data)
	if err != nil {
		t.Fatal(err)
	}
	return certs[0]
}

// authorityHash is what kubeadm and openssl say of the cluster's authority.
func authorityHash(t *testing.T) string {
	t.Helper()
	sum := sha256.Sum256(readLeaf(t, filepath.Join(plane.Dir, "ca.crt")).RawSubjectPublicKeyInfo)
	return "sha256:" + hex.EncodeToString(sum[:])
}

// issueShort puts a certificate in the place of a node's that is to be renewed within 21 s, and
// good for 30: of its 90 seconds 60 are over, and client-go renews at 70 to 90 %.
func issueShort(t *testing.T, name, path string) *x509.Certificate {
	t.Helper()
	ca, err := tls.LoadX509KeyPair(filepath.Join(plane.Dir, "pki", "ca.crt"), filepath.Join(plane.Dir, "pki", "ca.key"))
	if err != nil {
		t.Fatal(err)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: big.NewInt(now.UnixNano()), Subject: pkix.Name{CommonName: "system:node:" + name, Organization: []string{"system:nodes"}},
		NotBefore: now.Add(-time.Minute), NotAfter: now.Add(30 * time.Second), KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}, ca.Leaf, key.Public(), ca.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	keyPEM, err := keyutil.MarshalPrivateKeyToPEM(key)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, append(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), keyPEM...), 0o600); err != nil {
		t.Fatal(err)
	}
	return readLeaf(t, path)
}

// secretPod is a pod on a node that uses a Secret of its own name.
func secretPod(ns, name, node string) string {
	return fmt.Sprintf(`
apiVersion: v1
kind: Secret
metadata: {name: %[1]s, namespace: %[2]s}
stringData: {word: %[1]s}
---
apiVersion: v1
kind: Pod
metadata: {name: %[1]s, namespace: %[2]s}
spec:
  terminationGracePeriodSeconds: 1
  nodeName: %[3]s
  volumes: [{name: secret, secret: {secretName: %[1]s}}]
  containers:
  - name: main
    image: %[4]q
    command: [sh, -c, "echo up; exec sleep 3600"]
    volumeMounts: [{name: secret, mountPath: /secret}]
`, name, ns, node, served.Busybox)
}

// testRights tries with a node's own credentials what it needs, and what it must not have.
func testRights(t *testing.T, ns, name, kubeconfig string) {
	config, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
	if err != nil {
		t.Fatal(err)
	}
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	custom, err := dynamic.NewForConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	ledgers := custom.Resource(schema.GroupVersionResource{Group: "firkin.dev", Version: "v1alpha1", Resource: "nodeledgers"})
	templates := custom.Resource(schema.GroupVersionResource{Group: "firkin.dev", Version: "v1alpha1", Resource: "snapshottemplates"})
	pools := custom.Resource(schema.GroupVersionResource{Group: "firkin.dev", Version: "v1alpha1", Resource: "warmpools"})
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	var get metav1.GetOptions
	var list metav1.ListOptions
	var patch metav1.PatchOptions
	touch := []byte(`{"metadata":{"labels":{"touched":"yes"}}}`)
	status := []byte(`{"status":{"observedGeneration":99}}`)
	token := &authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{ExpirationSeconds: new(int64)}}
	*token.Spec.ExpirationSeconds = 600

	own, err := client.CoreV1().Pods(ns).Get(ctx, "own", get)
	if err != nil {
		t.Fatal(err)
	}
	foreign := foreignPod(t, ns)
	bound := func(p *corev1.Pod) *authenticationv1.TokenRequest {
		request := token.DeepCopy()
		request.Spec.BoundObjectRef = &authenticationv1.BoundObjectReference{Kind: "Pod", APIVersion: "v1", Name: p.Name, UID: p.UID}
		return request
	}

	for what, try := range map[string]func() error{
		"read a Secret of its own pod": func() error { _, err := client.CoreV1().Secrets(ns).Get(ctx, "own", get); return err },
		"list the pods that are bound": func() error {
			_, err := client.CoreV1().Pods("").List(ctx, metav1.ListOptions{FieldSelector: "spec.nodeName=" + name})
			return err
		},
		"get a token for its own pod": func() error {
			_, err := client.CoreV1().ServiceAccounts(ns).CreateToken(ctx, "default", bound(own), metav1.CreateOptions{})
			return err
		},
		"write its own NodeLedger's status": func() error {
			_, err := ledgers.Patch(ctx, name, types.MergePatchType, []byte(`{"status":{}}`), patch, "status")
			return err
		},
		"read SnapshotTemplates": func() error { _, err := templates.List(ctx, list); return err },
		"label itself": func() error {
			_, err := client.CoreV1().Nodes().Patch(ctx, name, types.MergePatchType, touch, patch)
			return err
		},
		"renew its lease": func() error {
			_, err := client.CoordinationV1().Leases("kube-node-lease").Get(ctx, name, get)
			return err
		},
	} {
		if err := try(); err != nil {
			t.Errorf("a node cannot %s: %v", what, err)
		}
	}
	for what, try := range map[string]func() error{
		"read a Secret of a pod on another node": func() error { _, err := client.CoreV1().Secrets(ns).Get(ctx, "foreign", get); return err },
		"read a Secret of no pod":                func() error { _, err := client.CoreV1().Secrets("kube-system").Get(ctx, "nobodys", get); return err },
		"list all Secrets":                       func() error { _, err := client.CoreV1().Secrets("").List(ctx, list); return err },
		"list a namespace's Secrets":             func() error { _, err := client.CoreV1().Secrets(ns).List(ctx, list); return err },
		"list all ConfigMaps":                    func() error { _, err := client.CoreV1().ConfigMaps("").List(ctx, list); return err },
		"delete another node's pod":              func() error { return client.CoreV1().Pods(ns).Delete(ctx, "foreign", metav1.DeleteOptions{}) },
		"write another node's pod's status": func() error {
			_, err := client.CoreV1().Pods(ns).Patch(ctx, "foreign", types.MergePatchType, []byte(`{"status":{"message":"x"}}`), patch, "status")
			return err
		},
		"evict another node's pod": func() error { return evict(ctx, client, ns, "foreign") },
		"get a token for another node's pod": func() error {
			_, err := client.CoreV1().ServiceAccounts(ns).CreateToken(ctx, "default", bound(foreign), metav1.CreateOptions{})
			return err
		},
		"get a token for no pod": func() error {
			_, err := client.CoreV1().ServiceAccounts(ns).CreateToken(ctx, "default", token, metav1.CreateOptions{})
			return err
		},
		"make a pod": func() error {
			_, err := client.CoreV1().Pods(ns).Create(ctx, strangePod(name), metav1.CreateOptions{})
			return err
		},
		"write another node's NodeLedger's status": func() error {
			_, err := ledgers.Patch(ctx, node.Name, types.MergePatchType, status, patch, "status")
			return err
		},
		"write another node's NodeLedger": func() error { _, err := ledgers.Patch(ctx, node.Name, types.MergePatchType, touch, patch); return err },
		"write its own NodeLedger's spec": func() error {
			_, err := ledgers.Patch(ctx, name, types.MergePatchType, []byte(`{"spec":{"targets":[]}}`), patch)
			return err
		},
		"delete a NodeLedger": func() error { return ledgers.Delete(ctx, node.Name, metav1.DeleteOptions{}) },
		"read WarmPools":      func() error { _, err := pools.List(ctx, list); return err },
		"label another node": func() error {
			_, err := client.CoreV1().Nodes().Patch(ctx, node.Name, types.MergePatchType, touch, patch)
			return err
		},
		"delete a node": func() error { return client.CoreV1().Nodes().Delete(ctx, node.Name, metav1.DeleteOptions{}) },
		"take another node's lease": func() error {
			_, err := client.CoordinationV1().Leases("kube-node-lease").Patch(ctx, node.Name, types.MergePatchType, touch, patch)
			return err
		},
		"ask to be another node": func() error { return requestAs(ctx, client, "system:node:"+node.Name) },
	} {
		err := try()
		// A policy says Invalid.
		if !apierrors.IsForbidden(err) && (!apierrors.IsInvalid(err) || !strings.Contains(err.Error(), "ValidatingAdmissionPolicy")) {
			t.Errorf("a node can %s: error %v", what, err)
		}
	}
	testDenied(t, client, name)
}

// foreignPod is the other node's pod, which the administrator sees.
func foreignPod(t *testing.T, ns string) *corev1.Pod {
	t.Helper()
	pod, err := getPod(t, ns, "foreign")
	if err != nil {
		t.Fatal(err)
	}
	return pod
}

func evict(ctx context.Context, client kubernetes.Interface, ns, pod string) error {
	return client.PolicyV1().Evictions(ns).Evict(ctx, &policyv1.Eviction{ObjectMeta: metav1.ObjectMeta{Name: pod, Namespace: ns}})
}

func strangePod(node string) *corev1.Pod {
	return &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "strange"}, Spec: corev1.PodSpec{NodeName: node, Containers: []corev1.Container{{Name: "c", Image: "none"}}}}
}

// servingRequest is what a node asks for, with a name of the caller's choice.
func servingRequest(signer, commonName string, dns ...string) (*certificatesv1.CertificateSigningRequest, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	request, err := cert.MakeCSRFromTemplate(key, &x509.CertificateRequest{Subject: pkix.Name{CommonName: commonName, Organization: []string{"system:nodes"}}, DNSNames: dns})
	usage := certificatesv1.UsageServerAuth
	if signer == certificatesv1.KubeAPIServerClientKubeletSignerName {
		usage = certificatesv1.UsageClientAuth
	}
	return &certificatesv1.CertificateSigningRequest{ObjectMeta: metav1.ObjectMeta{GenerateName: "e2e-"}, Spec: certificatesv1.CertificateSigningRequestSpec{
		Request: request, SignerName: signer, Usages: []certificatesv1.KeyUsage{certificatesv1.UsageDigitalSignature, usage},
	}}, err
}

func requestAs(ctx context.Context, client kubernetes.Interface, commonName string) error {
	csr, err := servingRequest(certificatesv1.KubeAPIServerClientKubeletSignerName, commonName)
	if err != nil {
		return err
	}
	_, err = client.CertificatesV1().CertificateSigningRequests().Create(ctx, csr, metav1.CreateOptions{})
	return err
}

// testDenied asks, as a node, for a certificate in the API server's name, which the approver denies.
func testDenied(t *testing.T, client kubernetes.Interface, name string) {
	t.Helper()
	csr, err := servingRequest(certificatesv1.KubeletServingSignerName, "system:node:"+name, "kubernetes.default.svc")
	if err != nil {
		t.Fatal(err)
	}
	requests := client.CertificatesV1().CertificateSigningRequests()
	if csr, err = requests.Create(t.Context(), csr, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	// It waits for its decision: nothing approves it, and the node cannot either.
	csr.Status.Conditions = []certificatesv1.CertificateSigningRequestCondition{{Type: certificatesv1.CertificateApproved, Status: corev1.ConditionTrue, Reason: "x"}}
	if _, err := requests.UpdateApproval(t.Context(), csr.Name, csr, metav1.UpdateOptions{}); !apierrors.IsForbidden(err) {
		t.Errorf("a node can approve a certificate: error %v", err)
	}
	eventually(t, time.Minute, "the approver denies a certificate in the API server's name", func() error {
		out, err := tryKubectl(t, "get", "csr", csr.Name, "-o", `jsonpath={range .status.conditions[*]}{.type} {.reason} {.message}{end}`)
		if err == nil && (!strings.HasPrefix(out, "Denied VkFirkin ") || !strings.Contains(out, "kubernetes.default.svc")) {
			err = fmt.Errorf("conditions are %q", out)
		}
		return err
	})
}
